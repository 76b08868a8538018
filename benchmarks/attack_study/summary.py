"""Records put together: a row for each contender of a case at each budget."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .cases import CASES
from .contenders import CONTENDERS
from .store import Record

SCORES = ("psnr", "ssim", "recovered")


@dataclass(frozen=True)
class Row:
    """All victims and seeds of a contender at one budget.

    Attributes:
        case: name.
        contender: name.
        tool: whose it is.
        control: whether it attacked the wrong update.
        budget: CPU seconds granted.
        values: measure to values, of the runs that ended well; empty if none did.
        cpu_seconds: spent, median.
        evaluations: median.
        troubles: reasons of runs that were refused or failed.
    """

    case: str
    contender: str
    tool: str
    control: bool
    budget: float
    values: dict[str, list[float]]
    cpu_seconds: float
    evaluations: float
    troubles: tuple[str, ...]

    @property
    def count(self) -> int:
        """Runs that ended well."""
        return len(self.values.get("ssim", ()))

    def median(self, measure: str) -> float:
        """Return the median over victims and seeds."""
        return statistics.median(self.values[measure])

    def spread(self, measure: str) -> str:
        """Return the median with the lowest and the highest value."""
        if not self.values.get(measure):
            return "–"
        digits = 1 if measure == "psnr" else 3
        low, high = min(self.values[measure]), max(self.values[measure])
        return f"{self.median(measure):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def rows_of(records: Sequence[Record]) -> list[Row]:
    """Group records of known contenders, in the order of the tables of cases and contenders."""
    found = []
    for case in CASES:
        for contender in CONTENDERS[case]:
            own = [r for r in records if (r.cell.case, r.cell.contender) == (case, contender.name)]
            for budget in sorted({record.cell.budget for record in own}):
                some = [record for record in own if record.cell.budget == budget]
                well = [record for record in some if record.status == "ok"]
                found.append(
                    Row(
                        case,
                        contender.name,
                        contender.tool,
                        contender.control,
                        budget,
                        {
                            name: [r.scores[name] for r in well if name in r.scores]
                            for name in (*SCORES, "prior_ssim", "labels")
                        }
                        if well
                        else {},
                        statistics.median(r.cpu_seconds for r in well) if well else 0.0,
                        statistics.median(r.evaluations for r in well) if well else 0.0,
                        tuple(dict.fromkeys(r.reason for r in some if r.status != "ok")),
                    )
                )
    return found
