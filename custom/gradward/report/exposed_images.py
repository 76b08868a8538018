"""Which of a site's images were shown most, over all rounds and attacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradward.metrics.scores import ImageScores
from gradward.report.exposures import ROLES, Exposure, excess

# Half of what a good guess leaves open: from here on a picture counts as recovered.
RECOVERED = 0.5


@dataclass(frozen=True)
class Tally:
    """How often an image was found.

    Attributes:
        scored: reconstructions that were scored against it, also those that gave it no picture.
        recovered: of these, with a recovered fraction of :data:`RECOVERED` or more.
        recognised: of these, with the image alone the nearest in the gallery.
    """

    scored: int
    recovered: int
    recognised: int


@dataclass(frozen=True)
class ExposedImage:
    """One image of the site.

    Attributes:
        position: in the site's training set.
        worst: the reconstruction that exposed it most.
        row: where it stands among that one's positions.
        place: where it stands among that one's pictures.
        real, control, prior: over all rounds and attacks; alike, so that they are read side by
            side.
    """

    position: int
    worst: Exposure
    row: int
    place: int
    real: Tally
    control: Tally
    prior: Tally


@dataclass(frozen=True)
class Exposed:
    """The images of a site, most exposed first.

    Attributes:
        images: at most as many as were asked for.
        scored: different images that a reconstruction was scored against.
        recognised, recognised_by_control, recognised_by_prior: of these, re-identified at least
            once.
        recovered, recovered_by_control: of these, recovered at least once.
    """

    images: list[ExposedImage]
    scored: int
    recognised: int
    recognised_by_control: int
    recognised_by_prior: int
    recovered: int
    recovered_by_control: int


def most_exposed(exposures: Sequence[Exposure], most: int) -> Exposed:
    """Count how often each image was found, and return those that were shown most.

    The order is that of :func:`~gradward.report.exposures.by_exposure`, by each image's worst
    reconstruction of all rounds and attacks.

    Args:
        exposures: of one site and job.
        most: images to return.
    """
    positions = np.unique(np.concatenate([[], *(item.positions for item in exposures)]).astype(int))
    real, control, prior = (_counts(exposures, positions, role) for role in ROLES)
    worst: dict[int, tuple[tuple[bool, float], Exposure, int, int]] = {}
    for item in exposures:
        for place, row in enumerate(item.pictures.rows.tolist()):
            position, shown = int(item.positions[row]), excess(item.each, row)
            if position not in worst or shown > worst[position][0]:
                worst[position] = (shown, item, row, place)
    first = sorted(worst, key=lambda position: (worst[position][0], -position), reverse=True)
    places = {int(position): column for column, position in enumerate(positions)}
    images = [
        ExposedImage(
            position,
            *worst[position][1:],
            real=Tally(*real[:, places[position]].tolist()),
            control=Tally(*control[:, places[position]].tolist()),
            prior=Tally(*prior[:, places[position]].tolist()),
        )
        for position in first[:most]
    ]
    (_, recovered, recognised), (_, recovered_by_control, by_control), (_, _, by_prior) = (
        (counts > 0).sum(1).tolist() for counts in (real, control, prior)
    )
    return Exposed(
        images,
        len(positions),
        recognised,
        by_control,
        by_prior,
        recovered,
        recovered_by_control,
    )


def most_recovered(exposures: Sequence[Exposure], role: str) -> list[float]:
    """Return the most that was recovered of each image, over all rounds and attacks, in order.

    Args:
        exposures: of one site and job.
        role: one of :data:`~gradward.report.exposures.ROLES`.
    """
    found: dict[int, float] = {}
    for item in exposures:
        scores: ImageScores | None = getattr(item.each, role)
        if scores is None:
            continue
        for position, value in zip(item.positions.tolist(), scores.recovered.tolist(), strict=True):
            if not math.isnan(value):
                found[position] = max(value, found.get(position, -math.inf))
    return sorted(found.values())


def _counts(
    exposures: Sequence[Exposure], positions: NDArray[np.int64], role: str
) -> NDArray[np.int64]:
    """Return ``(3, M)``: how often each position was scored, recovered and recognised."""
    counts = np.zeros((3, len(positions)), dtype=np.int64)
    for item in exposures:
        scores: ImageScores | None = getattr(item.each, role)
        if scores is None:
            continue
        columns = np.searchsorted(positions, item.positions)
        counts[0, columns] += 1
        # nan, where nothing was matched, is neither.
        counts[1, columns] += scores.recovered.numpy() >= RECOVERED
        counts[2, columns] += scores.rank.numpy() == 1
    return counts
