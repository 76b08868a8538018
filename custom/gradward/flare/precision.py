"""How finely a score may leave a site: the range and the step of each, and so the bits it carries.

A score is rounded to what a reader needs: whatever is finer serves only somebody who sends chosen
pictures and climbs by the answers. It does not stop him, it bounds what he can draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradward.flare.protocol import ScoreReply
from gradward.metrics.leakage import LeakageScores
from gradward.metrics.scores import Scores

# Of images: a longer number would carry more than a count.
MOST_COUNTED = 10**7


@dataclass(frozen=True)
class Grid:
    """The values that a score may have on its way out.

    Attributes:
        least, most: ends of the range; what lies beyond is told as the end.
        step: between two values.
    """

    least: float
    most: float
    step: float

    def nearest(self, value: float) -> float:
        """Return the value of the grid that is told for ``value``, which must be finite."""
        inside = min(max(value, self.least), self.most)
        # Three digits take away what the multiplication adds; adding 0 turns -0.0 into 0.0.
        return round(round(inside / self.step) * self.step, 3) + 0.0

    @property
    def size(self) -> int:
        """Number of values."""
        return round((self.most - self.least) / self.step) + 1


GRIDS: Mapping[str, Grid] = {
    "ssim": Grid(-1, 1, 0.01),
    "prior_ssim": Grid(-1, 1, 0.01),
    "psnr": Grid(0, 100, 0.1),
    "mse": Grid(0, 1, 0.001),
    "rdlv": Grid(-10, 20, 0.01),
    "recovered": Grid(-10, 1, 0.01),
    "reid": Grid(0, 1, 0.01),
    "rank": Grid(1, 1000, 0.5),
    "leakage": Grid(0, 2, 0.01),
}
COUNTS = ("n_images", "gallery")


def coarse(scores: Scores) -> dict[str, float | int | None]:
    """Return scores as they may leave: counts as they are, the rest on its grid, nan as None."""
    told: dict[str, float | int | None] = {name: getattr(scores, name) for name in COUNTS}
    for name, grid in GRIDS.items():
        value = getattr(scores, name)
        told[name] = None if math.isnan(value) else grid.nearest(value)
    return {name: told[name] for name in Scores.__dataclass_fields__}


def answer_of(scores: LeakageScores, membership: str) -> ScoreReply:
    """Return what may be told of scored reconstructions, the same of patients and of canaries.

    Args:
        scores: of reconstruction, control and prior.
        membership: one of :data:`~gradward.flare.protocol.MEMBERSHIP`.
    """
    return ScoreReply(
        status="ok",
        real=coarse(scores.real),
        control=None if scores.control is None else coarse(scores.control),
        prior=coarse(scores.prior),
        membership=membership,
    )


def is_coarse(name: str, value: Any) -> bool:
    """Whether ``value`` may leave as the score ``name``."""
    if name in COUNTS:
        return type(value) is int and 0 <= value <= MOST_COUNTED
    if value is None:
        return True
    grid = GRIDS[name]
    return type(value) is float and math.isfinite(value) and value == grid.nearest(value)


def bits_of_an_answer(max_images: int) -> float:
    """Bits that one answer can carry at most: real, control and prior, every score independent.

    The size of the gallery is not among them: no request changes it, so it is told once a job.

    Args:
        max_images: reconstructions that a request may hold, as the site's policy has it.
    """
    scores = sum(math.log2(grid.size + 1) for grid in GRIDS.values())
    return 3 * (scores + math.log2(max(max_images, 1)))


def bits_of_a_job(max_answers: int, max_images: int) -> float:
    """Bits that the answers of one job can carry at most."""
    return max_answers * bits_of_an_answer(max_images) + math.log2(MOST_COUNTED)
