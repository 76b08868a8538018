"""How far a run is, or was when it ended, by the small file that the auditor keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gradward.report.table import many

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
        f"round {status['round']} ({status['round'] + 1} of {status['rounds']}, as rounds count "
        "from 0)"
        if "round" in status
        else "no round"
    )
    open_audits = status.get("audits_open", 0)
    told = "was open. It is" if open_audits == 1 else "were open. They are"
    return (
        f"This run has not come to its end: it was in {place}, and {many(open_audits, 'audit')} "
        f"{told} not on record."
    )
