"""Files in a site's private folder: whole or not there, and for the site's user alone."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch


class StorageError(RuntimeError):
    """A private file is not what was stored."""


def save_private(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values so that the file appears whole, with mode 0600.

    Args:
        path: in an existing folder; an existing file is replaced.
        content: what ``torch.load(weights_only=True)`` can read.

    Raises:
        OSError: the file cannot be written.
    """
    # mkstemp makes the file readable by its owner alone before anything is in it.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_private(path: Path) -> dict[str, Any]:
    """Read what :func:`save_private` wrote; runs no code that the file may hold.

    Raises:
        OSError: there is no such file.
        StorageError: it is damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        raise StorageError(f"the private file '{path.name}' is damaged") from None
    if not isinstance(content, dict):
        raise StorageError(f"the private file '{path.name}' holds something else")
    return content
