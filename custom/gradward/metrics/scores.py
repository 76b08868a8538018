"""What is measured of one reconstruction, and the best of several attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class PictureScores:
    """Scalars over the matched images; nan where a quantity is undefined for all of them.

    Attributes:
        n_images: pairs that were matched.
        ssim: mean structural similarity to the truth.
        prior_ssim: the same of the prior image.
        psnr: mean, in dB, at most 100.
        mse: mean squared error.
        rdlv: mean of ``(s - p) / p`` with the prior's SSIM as ``p``, as published.
        recovered: mean of ``(s - p) / (1 - p)`` with the better of prior and public mean as ``p``.
        leakage: mean of ``max(0, s - b)``; ``b`` is the best SSIM of prior, public mean and (for
            the real reconstruction) control.
    """

    n_images: int
    ssim: float
    prior_ssim: float
    psnr: float
    mse: float
    rdlv: float
    recovered: float
    leakage: float

    def to_dict(self, digits: int = 3) -> dict[str, float | int | None]:
        """JSON values, rounded to ``digits`` decimals; None where a value is nan."""
        return {name: _rounded(value, digits) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, float | int | None]) -> Self:
        """Read back what :meth:`to_dict` wrote."""
        return cls(**{k: math.nan if v is None else v for k, v in values.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Scores(PictureScores):
    """The same with what a gallery tells.

    Attributes:
        reid: share of the images that are re-identified, rank 1 in the gallery.
        rank: median rank in the gallery.
        gallery: number of pictures in the gallery; chance is one in it.
    """

    reid: float
    rank: float
    gallery: int


@dataclass(frozen=True)
class ImageScores:
    """Scores truth by truth, nan where no picture was matched to it. They stay at home.

    Attributes:
        ssim, recovered: ``(m,)`` float64, as of :class:`PictureScores`.
        rank: ``(m,)`` float64, in the gallery; nan without one.
    """

    ssim: Tensor
    recovered: Tensor
    rank: Tensor


@dataclass(frozen=True)
class EachImage:
    """The same three by image that :class:`Comparison` holds over all of them.

    Attributes:
        real, control, prior: over the same truths.
    """

    real: ImageScores
    control: ImageScores | None
    prior: ImageScores


@dataclass(frozen=True)
class Comparison:
    """Scores that are only to be read beside each other.

    Attributes:
        real: of the reconstructions from the site's update.
        control: of those from the wrong update, or None.
        prior: of the prior image itself.
    """

    real: Scores
    control: Scores | None
    prior: Scores


@dataclass(frozen=True)
class Matched:
    """Which pictures were compared with which truths.

    Attributes:
        assignment: rows into the reconstructions and columns into the truths, as
            :func:`gradward.metrics.matching.match`; it stays at home.
        control_assignment: the same for the control, which is matched by itself; None without.
        each: what the means are of.
    """

    assignment: tuple[Tensor, Tensor]
    control_assignment: tuple[Tensor, Tensor] | None
    each: EachImage

    @property
    def control_beside(self) -> Tensor | None:
        """Row of the control to show beside each pair of ``assignment``; None without control.

        Where the control was matched to other truths than the reconstructions were, those without
        a control of their own get the one in the reconstruction's place.
        """
        if self.control_assignment is None:
            return None
        (rows, columns), (control_rows, control_columns) = self.assignment, self.control_assignment
        partner = torch.zeros(int(torch.cat([columns, control_columns]).max()) + 1).long()
        partner[columns] = rows
        partner[control_columns] = control_rows
        return partner[columns]


@dataclass(frozen=True)
class PictureComparison(Matched):
    """Scores of one attack's pictures, without a gallery.

    Attributes:
        real, control, prior: as of :class:`Comparison`.
    """

    real: PictureScores
    control: PictureScores | None
    prior: PictureScores


@dataclass(frozen=True)
class LeakageScores(Comparison, Matched):
    """Scores of one attack on a site's update."""


def best_of_attacks(attacks: Sequence[Comparison]) -> Comparison:
    """Best of several attacks on the same update, quantity by quantity, alike for all three roles.

    Real, control and prior each keep their own best, so that more attacks raise the bar as much as
    the score. "Best" is the attacker's: the greatest ssim, psnr, rdlv, recovered, reid and leakage,
    the least mse and rank; nan counts only where every attack has it. ``n_images`` and ``gallery``
    are the least, ``prior_ssim`` the greatest.

    Args:
        attacks: scores of one site and round, one entry an attack.

    Returns:
        The best; without control unless every attack had one.

    Raises:
        ValueError: there are none.
    """
    if not attacks:
        raise ValueError("there are no attacks to choose from")
    controls = [attack.control for attack in attacks if attack.control is not None]
    return Comparison(
        real=_best([attack.real for attack in attacks]),
        # A control that had fewer tries than the real update would be no control.
        control=_best(controls) if len(controls) == len(attacks) else None,
        prior=_best([attack.prior for attack in attacks]),
    )


def _best(scores: Sequence[Scores]) -> Scores:
    choose: dict[str, Callable[[list[float]], float]] = dict.fromkeys(
        ("n_images", "mse", "rank", "gallery"), min
    )
    columns = {name: [getattr(item, name) for item in scores] for name in asdict(scores[0])}
    return Scores(
        **{
            name: choose.get(name, max)([v for v in values if not math.isnan(v)] or [math.nan])
            for name, values in columns.items()
        }  # type: ignore[arg-type]
    )


def _rounded(value: float | int, digits: int) -> float | int | None:
    if isinstance(value, int):
        return value
    # Adding 0 turns -0.0 into 0.0.
    return None if math.isnan(value) else round(value, digits) + 0.0
