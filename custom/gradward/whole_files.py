"""Files that are whole or not there, and for their owner alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file of mode 0600 for writing, which takes its name once it is written.

    Args:
        path: in an existing folder; an existing file is replaced, or stays if the writing fails.

    Raises:
        OSError: the file cannot be written.
    """
    # mkstemp makes the file readable by its owner alone before anything is in it.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
