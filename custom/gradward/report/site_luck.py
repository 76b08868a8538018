"""Whether luck explains what a site's own page counts; the server's report asks the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradward.metrics.scores import ImageScores
from gradward.report.evidence import fisher
from gradward.report.exposures import Exposure
from gradward.report.verdict import LUCK

# A smaller chance is told as less than this.
_RAREST = 1000


@dataclass(frozen=True)
class Counted:
    """Hits of the updates beside those of the controls.

    Attributes:
        tries, hits: of the updates.
        control_tries, control_hits: of the controls.
    """

    tries: int
    hits: int
    control_tries: int
    control_hits: int

    @property
    def luck(self) -> float:
        """How likely so many more hits are if update and control tell the same."""
        return fisher(self.hits, self.tries, self.control_hits, self.control_tries)

    @property
    def by_luck(self) -> bool:
        """Whether luck explains it."""
        return self.luck >= LUCK

    @property
    def how_often(self) -> str:
        """Say how often luck alone would bring it about."""
        if self.luck > 0.5:
            return "more often than not"
        if self.luck < 1 / _RAREST:
            return f"less than one time in {_RAREST}"
        return f"one time in {int(1 / self.luck)}"


@dataclass(frozen=True)
class SiteLuck:
    """What was re-identified where a control was scored beside it.

    Attributes:
        tries: each image in each round under each attack counts.
        images: each image counts once, as found where any try found it.
    """

    tries: Counted
    images: Counted


def luck_of(exposures: Sequence[Exposure]) -> SiteLuck | None:
    """Count over all reconstructions that have a control; None where none has."""
    real, control = _Tally(), _Tally()
    for item in exposures:
        if item.each.control is not None:
            real.add(item, item.each.real)
            control.add(item, item.each.control)
    if not control.tries:
        return None
    images = len(real.images | control.images)
    return SiteLuck(
        Counted(real.tries, real.hits, control.tries, control.hits),
        Counted(images, len(real.found), images, len(control.found)),
    )


class _Tally:
    """Tries and hits of one role; an image to which nothing was matched was not tried."""

    def __init__(self) -> None:
        self.tries = self.hits = 0
        self.images: set[int] = set()
        self.found: set[int] = set()

    def add(self, exposure: Exposure, scores: ImageScores) -> None:
        tried, hit = (~scores.ssim.isnan()).numpy(), (scores.rank == 1).numpy()
        self.tries += int(tried.sum())
        self.hits += int(hit.sum())
        self.images |= set(exposure.positions[tried].tolist())
        self.found |= set(exposure.positions[hit].tolist())
