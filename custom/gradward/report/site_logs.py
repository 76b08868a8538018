"""The logs in a site's private folder of a job: lines of JSON, each with its time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# What the audit asked and was told; the scalars that were streamed; what the filters decided.
ANSWERS = "answers.log"
SCALARS = "scalars.log"
GUARD = "guard.log"
GATE = "gate.log"
# Refusals beyond what ANSWERS holds, counted.
OVERFLOW = "answers.overflow.json"


def read_log(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Return a log's entries and how many of its lines cannot be read; none without the file.

    A process that is killed may leave half a line.

    Raises:
        OSError: the file cannot be read.
    """
    if not file.is_file():
        return [], 0
    entries, damaged = [], 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict):
            entries.append(entry)
        else:
            damaged += 1
    return entries, damaged
