"""What is in a site's private folder of a job, ``<private root>/jobs/<job>/``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Logs, a line of JSON each: what the audit asked and was told, the scalars that left, and what the
# filters decided.
ANSWERS = "answers.log"
SCALARS = "scalars.log"
GUARD = "guard.log"
GATE = "gate.log"
# Refusals beyond what ANSWERS holds, counted.
OVERFLOW = "answers.overflow.json"
# What the run was: certified, or open to a live audit.
STATEMENT = "certificate.json"
# What the job is called by who submitted it; its folder bears the id.
JOB = "job.json"
# A file for each round of which an update was made, and for each reconstruction that was scored.
ROUNDS = "rounds"
EXPOSURES = "exposures"
# A few images beside what the training got of them.
PERTURBED = "perturbed.npz"
_TRACES = (ANSWERS, SCALARS, GUARD, GATE, ROUNDS, EXPOSURES, PERTURBED)


def is_site_folder(folder: Path) -> bool:
    """Whether a folder is a site's private folder of a job, with anything to show."""
    return folder.parent.name == "jobs" and any((folder / name).exists() for name in _TRACES)


def site_folders(run_folder: Path) -> list[Path]:
    """Return the private folders of a simulated run's sites, which lie beside its workspace."""
    found = sorted(run_folder.glob("workspace.private/*/jobs/*"))
    return [folder for folder in found if is_site_folder(folder)]


def page_of(job_folder: Path) -> Path:
    """Return where a site's own page is, or would be."""
    return job_folder / "report" / "index.html"


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
