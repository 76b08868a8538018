"""Where an attack searches for images: among pixels, or in a learned prior's coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from gradward.attacks.budget import Allowance
from gradward.attacks.case import AttackCase, Start
from gradward.attacks.image_prior import ImagePrior, learn_prior
from gradward.attacks.objectives import total_variation
from gradward.attacks.search import Search, descend_lbfgs


class SearchSpace(Protocol):
    """Places that stand for images, with the regulariser that belongs to them.

    Attributes:
        start: the place to begin at.
    """

    start: Tensor

    def images(self, place: Tensor) -> Tensor:
        """Return the images ``(n, C, H, W)`` at a place, which may lie outside [0, 1]."""

    def descend(
        self, loss: Callable[[Tensor], Tensor], place: Tensor, allowance: Allowance
    ) -> tuple[Search, Tensor]:
        """Minimise ``loss`` of images plus the regulariser by L-BFGS.

        Args:
            loss: of images ``(n, C, H, W)``, a scalar.
            place: to begin at.
            allowance: of this descent.

        Returns:
            The search, with images, and the place of its best ones.

        Raises:
            FloatingPointError: the loss is not finite at the place.
        """


class PixelSpace:
    """The images themselves; neighbouring pixels shall differ little.

    Args:
        start: ``(n, C, H, W)``.
        tv_weight: of the total variation.
    """

    def __init__(self, start: Tensor, tv_weight: float):
        self.start = start
        self._tv_weight = tv_weight

    def images(self, place: Tensor) -> Tensor:
        """Return the place."""
        return place

    def descend(
        self, loss: Callable[[Tensor], Tensor], place: Tensor, allowance: Allowance
    ) -> tuple[Search, Tensor]:
        """Minimise ``loss`` plus the weighted total variation."""

        def smooth(images: Tensor) -> Tensor:
            return loss(images) + self._tv_weight * total_variation(images)

        search = descend_lbfgs(smooth, place, allowance)
        return search, place if search.images is None else search.images


class PriorSpace:
    """White coordinates of a learned prior; its maximum a posteriori is sought.

    Args:
        prior: whose coordinates they are.
        start: ``(n, size)``.
        weight: of the mean squared coordinate, which is the negative log density but for scale.
    """

    def __init__(self, prior: ImagePrior, start: Tensor, weight: float):
        self.start = start
        self._prior, self._weight = prior, weight

    def images(self, place: Tensor) -> Tensor:
        """Return the images ``(n, C, H, W)`` at ``(n, size)``."""
        return self._prior.images(place)

    def descend(
        self, loss: Callable[[Tensor], Tensor], place: Tensor, allowance: Allowance
    ) -> tuple[Search, Tensor]:
        """Minimise ``loss`` plus the images' improbability."""

        def posterior(coordinates: Tensor) -> Tensor:
            return loss(self.images(coordinates)) + self._weight * coordinates.square().mean()

        search = descend_lbfgs(posterior, place, allowance)
        best = place if search.images is None else search.images
        with torch.no_grad():
            search.images = self.images(best)
        return search, best


class SpaceOptions(Protocol):
    """What an attack's options say of where it searches."""

    @property
    def tv_weight(self) -> float:
        """Weight of the total variation of pixels."""

    @property
    def prior_noise(self) -> float:
        """As of :meth:`AttackCase.copies_of_prior`, of pixels."""

    @property
    def learned_prior(self) -> float:
        """Weight of a learned prior; 0 learns none."""


def search_space(
    case: AttackCase,
    options: SpaceOptions,
    generator: torch.Generator,
    *,
    prior_share: float = 1.0,
    start: Start = "prior",
) -> SearchSpace:
    """Return a learned prior's space where it has a weight, else the pixels'.

    Args:
        case: which images to begin with, and public ones to learn from.
        options: of the attack.
        generator: of the CPU, for the start.
        prior_share: of a learned prior's weight that suits the attack's loss.
        start: of pixels; a learned prior begins at its mean.

    Raises:
        AttackRefused: too few public images for a learned prior.
    """
    if options.learned_prior:
        prior = learn_prior(case)
        weight = prior_share * options.learned_prior
        return PriorSpace(prior, prior.start(case, generator), weight)
    images = case.starting_images(start, options.prior_noise, generator)
    return PixelSpace(images, options.tv_weight)
