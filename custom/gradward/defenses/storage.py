"""Files in a site's private folder: whole or not there, and for the site's user alone."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from gradward.whole_files import whole_file


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
    with whole_file(path) as file:
        torch.save(content, file)


def load_private(path: Path) -> dict[str, Any]:
    """Read what :func:`save_private` wrote; runs no code that the file may hold.

    Raises:
        OSError: there is no such file.
        StorageError: it is damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        raise StorageError(
            f"the private file '{path.name}' is damaged; restore it from a backup"
        ) from None
    if not isinstance(content, dict):
        raise StorageError(
            f"the private file '{path.name}' holds something else; restore it from a backup"
        )
    return content
