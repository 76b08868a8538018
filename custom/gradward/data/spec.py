"""Reading the settings that say where a site's data is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gradward.data.images import DataError

T = TypeVar("T")


def check_keys(spec: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse settings that nobody reads.

    Raises:
        DataError: ``spec`` is not an object or has a key that is not in ``known``.
    """
    if not isinstance(spec, Mapping):
        raise DataError(f"{where} must be a JSON object, got {type(spec).__name__}")
    unknown = sorted(set(spec) - set(known))
    if unknown:
        raise DataError(f"{where} has unknown settings {unknown}; known are {sorted(known)}")


def setting(spec: Mapping[str, Any], key: str, kind: type[T], where: str, default: T | None) -> T:
    """Return ``spec[key]``, or the default; None as default makes it a required setting.

    Raises:
        DataError: it is missing or of another type.
    """
    value = spec.get(key, default)
    if value is None:
        raise DataError(f"{where} lacks the setting '{key}'")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"'{key}' of {where} must be {kind.__name__}, got {type(value).__name__}")
    return value


def existing_path(spec: Mapping[str, Any], key: str, where: str, *, folder: bool = False) -> Path:
    """Return the path in ``spec[key]``; the error does not repeat it.

    Raises:
        DataError: it is missing, or there is no such file or folder.
    """
    path = Path(setting(spec, key, str, where, None)).expanduser()
    try:
        exists = path.is_dir() if folder else path.is_file()
    except OSError:
        # A folder that may not be entered; the system's message holds its name.
        exists = False
    if not exists:
        what = "folder" if folder else "file"
        raise DataError(f"the {what} that '{key}' of {where} names does not exist; correct '{key}'")
    return path
