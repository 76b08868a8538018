"""How much each site's updates were attacked with: a weak attack finds little, whoever is safe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradward.report.records import LeakageRecord


@dataclass(frozen=True)
class Effort:
    """The fewest and the most evaluations that an attack made on one update of a site."""

    least: int
    most: int

    def __str__(self) -> str:
        """Write one figure where all attacks made as many."""
        return str(self.most) if self.least == self.most else f"{self.least} to {self.most}"


def effort_of(records: Sequence[LeakageRecord]) -> Effort | None:
    """Return what the scored attacks among a site's records made; None where none says."""
    made = [
        record.evals
        for record in records
        if record.status == "ok" and not record.control and record.evals is not None
    ]
    return Effort(min(made), max(made)) if made else None


def compare_effort(site: str, efforts: Mapping[str, Effort]) -> str | None:
    """Say how many evaluations attacks made at a site, and where they made most.

    Args:
        site: that is told of.
        efforts: by site, of those where it is known.
    """
    if site not in efforts:
        return None
    here = efforts[site]
    told = f"An attack made {here} evaluation{'s' * (here.most != 1)} an update here"
    hardest = max(efforts, key=lambda name: efforts[name].most)
    if efforts[hardest].most == here.most:
        return f"{told}."
    return f"{told}, {efforts[hardest]} at {hardest}: the fewer, the less it can find."
