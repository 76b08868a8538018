"""JSON files that people write by hand, and where in them a mistake is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class JsonFileError(ValueError):
    """A file that is not the JSON object it should be; names the file and the line."""


def read_json_object(file: Path) -> dict[str, Any]:
    """Return the object in a file.

    Raises:
        JsonFileError: there is no such file, it cannot be read, or it holds something else.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise JsonFileError(f"{file} must hold a JSON object in braces, not a list or a value")
    return content


def read_json(file: Path) -> Any:
    """Return what a file holds.

    Raises:
        JsonFileError: there is no such file, or it cannot be read as JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise JsonFileError(f"{file} cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise JsonFileError(
            f"{file}, line {error.lineno}, column {error.colno} is not JSON: {error.msg}; look for "
            "a comma too many or too few, or a missing quote, there or just before"
        ) from None
    except ValueError:
        raise JsonFileError(f"{file} is no text in UTF-8; save it as such") from None
