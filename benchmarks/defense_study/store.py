"""One JSON line for each finished cell, so that a study can stop and go on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .scoring import Evidence

VERSION = 2
# The model of a single round is a matter of luck where a set is small.
LAST_ROUNDS = 3


@dataclass(frozen=True)
class CellKey:
    """Which cell of the study: data set, seed, arm and the arm's setting."""

    set: str
    seed: int
    arm: str
    setting: str


@dataclass(frozen=True)
class CellResult:
    """What a cell came to.

    Attributes:
        key: which cell.
        status: ``"ok"``; ``"refused"`` where the defence itself declined to train, or
            ``"failed"``, which a later run tries again.
        reason: of any other status than ok.
        balanced_accuracy: on clean test images, at the start and after each round.
        leakage: attacker to attack to evidence.
        facts: what the defence states of itself: rate, epsilon, seconds, acceptance.
        membership: what the attacker holds to the area under the ROC curve, and its upper bound.
        seconds: wall clock.
    """

    key: CellKey
    status: str
    reason: str = ""
    balanced_accuracy: list[float] = field(default_factory=list)
    leakage: dict[str, dict[str, Evidence]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    membership: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def utility(self) -> float:
        """Balanced accuracy, the mean over the last three rounds."""
        last = self.balanced_accuracy[1:][-LAST_ROUNDS:]
        return sum(last) / len(last)


class ResultStore:
    """Results of one kind of run (quick or full) in one file; later lines replace earlier ones.

    Args:
        file: JSON lines; created with the first result. A last line that was cut off by an
            interruption is dropped, so that its cell is done again.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._results: dict[CellKey, CellResult] = {}
        if file.is_file():
            text = file.read_text()
            whole = text.rpartition("\n")[0]
            for line in whole.splitlines():
                result = _parse(line)
                if result is not None:
                    self._results[result.key] = result
            # Whatever follows the last newline would spoil the next line. A whole file is left
            # alone: a report may be written while a study runs.
            if not text.endswith("\n"):
                file.write_text(whole + "\n" if whole else "")

    @property
    def results(self) -> list[CellResult]:
        """All results, in the order of their first appearance."""
        return list(self._results.values())

    def done(self, key: CellKey) -> bool:
        """Whether a cell needs no further run."""
        return key in self._results and self._results[key].status != "failed"

    def add(self, result: CellResult) -> None:
        """Append one result."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        leakage = {
            attacker: {attack: evidence.to_dict() for attack, evidence in attacks.items()}
            for attacker, attacks in result.leakage.items()
        }
        line = {"version": VERSION, **asdict(result), "leakage": leakage}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._results[result.key] = result


def _parse(line: str) -> CellResult | None:
    """Return a stored result, or None for one of another version of the study."""
    values = json.loads(line)
    if values.pop("version") != VERSION:
        return None
    values["key"] = CellKey(**values["key"])
    values["leakage"] = {
        attacker: {attack: Evidence(**sums) for attack, sums in attacks.items()}
        for attacker, attacks in values["leakage"].items()
    }
    return CellResult(**values)
