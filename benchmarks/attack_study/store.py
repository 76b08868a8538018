"""One JSON file for each finished cell, so that a run can stop and go on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

VERSION = 1


@dataclass(frozen=True)
class Cell:
    """One run: which contender on which victims, with how much time."""

    case: str
    contender: str
    picture: int
    seed: int
    budget: float

    @property
    def file(self) -> str:
        """Name of the record's file."""
        name = "".join(c if c.isalnum() else "-" for c in self.contender.lower())
        return f"{self.case}--{name}--p{self.picture}-s{self.seed}-{self.budget:g}s.json"


@dataclass(frozen=True)
class Record:
    """What a cell came to.

    Attributes:
        cell: which.
        status: ``"ok"``, ``"refused"`` or ``"failed"``, which a later run tries again.
        reason: of any other status than ok.
        loss: the lowest.
        evaluations: spent; iterations where a peer counts those.
        cpu_seconds: spent, one thread.
        seconds: wall clock.
        scores: as :func:`attack_study.scoring.score`, and ``labels``, the share of right ones
            where they were inferred.
    """

    cell: Cell
    status: str
    reason: str = ""
    loss: float | None = None
    evaluations: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)


class Store:
    """Records in a folder; a record of another version of the study is not seen.

    Args:
        folder: created with the first record.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def done(self, cell: Cell) -> bool:
        """Whether a cell needs no further run."""
        record = self._read(self._folder / cell.file)
        return record is not None and record.cell == cell and record.status != "failed"

    def add(self, record: Record) -> None:
        """Write one record; the file appears whole."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / record.cell.file
        part = file.with_suffix(".part")
        part.write_text(json.dumps({"version": VERSION, **asdict(record)}, indent=1) + "\n")
        part.replace(file)

    @property
    def records(self) -> list[Record]:
        """All records, in the order of their files' names."""
        found = [self._read(file) for file in sorted(self._folder.glob("*.json"))]
        return [record for record in found if record is not None]

    @staticmethod
    def _read(file: Path) -> Record | None:
        if not file.is_file():
            return None
        values = json.loads(file.read_text())
        if values.pop("version", None) != VERSION:
            return None
        return Record(**{**values, "cell": Cell(**values["cell"])})
