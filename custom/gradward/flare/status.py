"""How far a run is, for whoever watches it from outside the server's process."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from gradward.report.status import STATUS_FILE

# Under this name an administrator's `show_stats` has the same entries.
STATS_GROUP = "gradward"


class AuditStatus:
    """A small JSON file, replaced whole at every change."""

    def __init__(self, folder: Path) -> None:
        """Args: the server's run folder."""
        self._file = folder / STATUS_FILE
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {"phase": "starting", "audits_open": 0}

    def update(self, **values: Any) -> None:
        """Change some entries and write the file."""
        with self._lock:
            self._values.update(values)
            temporary = self._file.with_suffix(".tmp")
            temporary.write_text(json.dumps(self._values), encoding="utf-8")
            temporary.replace(self._file)

    @property
    def values(self) -> dict[str, Any]:
        """The entries as they are now."""
        with self._lock:
            return dict(self._values)
