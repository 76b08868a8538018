"""An image prior learned from public images, for where an update tells less than there are pixels.

Total variation only says that pictures are smooth. Public images of the same kind also tell how
they differ from each other: how much at which frequency, and in which directions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradward.attacks.case import AttackCase
from gradward.attacks.observation import AttackRefused

LEAST_IMAGES = 2
# Of a mean of equal images in single precision.
ROUNDING = 1e-6
# Share of the variance in the directions in which the public images differ, which are too few to
# span all others; the rest goes to frequencies.
DIRECTIONS = 0.5
# Standard deviation of what tells images apart at the start, in units of the prior's own.
START_NOISE = 0.1


class ImagePrior:
    """A Gaussian fitted to public images, searched in coordinates in which it is white.

    Its covariance is, in equal shares, that of the images, as of principal components, and
    a stationary one of the same power at each spatial frequency, for a handful of images spans
    only a handful of directions. Coarse structure has the larger deviations, so that a descent in
    white coordinates finds it first, without stages of resolution.

    Args:
        mean: ``(C, H, W)``, the attacker's prior image, which may be the mean of more images.
        public: ``(N, C, H, W)`` in [0, 1], of the client's kind and none of its own; at least 2.

    Raises:
        AttackRefused: too few images, or images that are all the same.
    """

    def __init__(self, mean: Tensor, public: Tensor):
        if len(public) < LEAST_IMAGES:
            raise AttackRefused(
                f"a learned prior needs at least {LEAST_IMAGES} public images, got {len(public)}; "
                "give more"
            )
        count, *shape = public.shape
        self._shape = tuple(shape)
        self._mean = mean
        # Divided so that squares add up to the unbiased covariance.
        apart = (public - public.mean(0)) / math.sqrt(count - 1)
        if not bool((apart.abs() > ROUNDING).any()):
            raise AttackRefused("public images that are all the same teach no prior")
        channels, height, width = shape
        self._rows, self._columns = (cosines(side).to(public) for side in (height, width))
        pixels = apart.transpose(0, 1).reshape(channels, -1)
        # Colours vary together: without this each channel would be guessed on its own.
        self._colours = torch.linalg.eigh(pixels @ pixels.T).eigenvectors
        waves = self._rows @ torch.einsum("nchw,cd->ndhw", apart, self._colours) @ self._columns.T
        self._deviations = math.sqrt(1 - DIRECTIONS) * radial_mean(waves.square().sum(0)).sqrt()
        self._directions = math.sqrt(DIRECTIONS) * apart.reshape(count, -1)

    @property
    def size(self) -> int:
        """Number of an image's coordinates: its pixels' and one a public image."""
        return math.prod(self._shape) + len(self._directions)

    def start(self, case: AttackCase, generator: torch.Generator) -> Tensor:
        """Return ``(n_images, size)``: the mean, with noise where a start takes some.

        Where it does, see :meth:`AttackCase.copies_of_prior`.

        Args:
            case: how many images, and which restart.
            generator: of the CPU.
        """
        chance = START_NOISE if case.n_images > 1 or case.restart else 0.0
        drawn = torch.randn(case.n_images, self.size, generator=generator, dtype=torch.float32)
        return chance * drawn.to(self._mean)

    def images(self, coordinates: Tensor) -> Tensor:
        """Return the images ``(n, C, H, W)`` at ``(n, size)``, which may lie outside [0, 1]."""
        waves, weights = coordinates.split([math.prod(self._shape), len(self._directions)], dim=1)
        waves = self._deviations * waves.reshape(-1, *self._shape)
        pictures = torch.einsum(
            "ndhw,cd->nchw", self._rows.T @ waves @ self._columns, self._colours
        )
        return self._mean + pictures + (weights @ self._directions).reshape(-1, *self._shape)


def learns(attack: object) -> bool:
    """Whether an attack, by its options, learns a prior from public images."""
    return bool(getattr(attack, "learned_prior", 0))


def learn_prior(case: AttackCase) -> ImagePrior:
    """Fit the prior to the public images of a case.

    Raises:
        AttackRefused: there are none, or too few.
    """
    if case.public is None:
        raise AttackRefused(
            "a learned prior needs public images and none are given; give some, or set "
            "learned_prior to 0"
        )
    return ImagePrior(case.prior, case.public)


def cosines(side: int) -> Tensor:
    """Return the orthonormal discrete cosine transform (DCT-II), ``(side, side)``.

    Of cosines, since a picture's edges do not meet as the Fourier transform has them.
    """
    waves = torch.arange(side, dtype=torch.float64)[:, None]
    places = torch.arange(side, dtype=torch.float64)[None] + 0.5
    matrix = torch.cos(math.pi * places * waves / side) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix


def radial_mean(power: Tensor) -> Tensor:
    """Return ``(C, H, W)`` with each value replaced by the mean of its spatial frequency.

    A few images tell the power of a single wave too badly.

    Args:
        power: ``(C, H, W)`` over waves down and across.
    """
    _, height, width = power.shape
    down = torch.arange(height, device=power.device)[:, None] / height
    across = torch.arange(width, device=power.device)[None] / width
    ring = (max(height, width) * torch.hypot(down, across)).round().long().flatten()
    totals = power.new_zeros(len(power), int(ring.max()) + 1)
    totals.index_add_(1, ring, power.flatten(1))
    return (totals / torch.bincount(ring).clamp_min(1))[:, ring].reshape(power.shape)
