"""A site's private memory of its rounds, on disk because NVFlare may re-create the client."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from gradward.report.site_folder import ROUNDS


@dataclass(frozen=True)
class RoundRecord:
    """Which of the site's images made the update of one round.

    Attributes:
        round: number of the round.
        images: positions in the site's training set, in order of first use; None where somebody
            else's trainer made the update and did not say.
        steps: optimiser steps taken; None likewise.
    """

    round: int
    images: list[int] | None
    steps: int | None


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    temporary.replace(path)


def _round_file(job_folder: Path, number: int) -> Path:
    return job_folder / ROUNDS / f"{number}.json"


def remember_round(job_folder: Path, record: RoundRecord) -> None:
    """Store the record of a round."""
    file = _round_file(job_folder, record.round)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    write_private(file, json.dumps(asdict(record)))


def recall_round(job_folder: Path, number: int) -> RoundRecord | None:
    """Return the record of a round, or None if this site sent no update in it."""
    file = _round_file(job_folder, number)
    if not file.is_file():
        return None
    return RoundRecord(**json.loads(file.read_text(encoding="utf-8")))
