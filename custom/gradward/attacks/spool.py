"""States on disk, for the server's user alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradward.training import State
from gradward.whole_files import whole_file


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors or arrays to an ``.npz`` file that appears whole, with mode 0600.

    Args:
        path: in an existing folder; an existing file is replaced.
        state: by name; names may hold dots and slashes.

    Raises:
        OSError: the file cannot be written.
        TypeError: a value has a type that numpy lacks (bfloat16).
    """
    arrays = {
        name: value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        for name, value in state.items()
    }
    with whole_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_state(path: Path) -> State:
    """Read what :func:`save_state` wrote; never unpickles.

    Raises:
        OSError, ValueError: no such file, or not one of numeric arrays.
    """
    with np.load(path, allow_pickle=False) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}
