"""How far a run is, or was when it ended, by the small file that the auditor keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STATUS_FILE = "audit_status.json"
FINISHED = "finished"


def read_status(folder: Path) -> dict[str, Any]:
    """Return the entries; empty when there is no run yet."""
    try:
        return dict(json.loads((folder / STATUS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def not_finished(folder: Path) -> str | None:
    """Say what is missing from the records of a run that is not over, or was cut short.

    None where nothing is: an orderly end puts every open audit on record.
    """
    status = read_status(folder)
    if not status or status.get("phase") == FINISHED:
        return None
    place = (
        f"round {status['round'] + 1} of {status['rounds']}" if "round" in status else "no round"
    )
    return (
        f"This run has not come to its end: it was in {place}, and {status.get('audits_open', 0)} "
        "audits were open. They are not on record."
    )
