"""Files of JSON lines that stay readable whatever happens to their writer."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class LineFile:
    """Appends objects to a file, a line each, from any thread."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, which may hold lines from before a restart.

        Raises:
            OSError: it cannot be written.
        """
        self.path = path
        self._lock = threading.Lock()
        with path.open("ab+") as file:
            # A process that was killed while it wrote leaves a cut line: the next one must not
            # continue it.
            file.seek(0)
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)

    def append(self, values: Mapping[str, Any]) -> None:
        """Write one whole line, or nothing.

        Raises:
            OSError: it cannot be written.
        """
        line = (json.dumps(values) + "\n").encode()
        with self._lock, self.path.open("ab", buffering=0) as file:
            start = file.tell()
            try:
                if file.write(line) != len(line):
                    raise OSError("the disk is full")
            except OSError:
                file.truncate(start)
                raise
