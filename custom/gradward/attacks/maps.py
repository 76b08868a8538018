"""Inversion of a whole activation map, which a late convolution's gradient tells to the last digit.

BatchNorm's buffers may be withheld, and no label is needed. What is left to search for is the image
behind a map of more values than it has pixels, by one forward pass through the front of the
network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradward.attacks.budget import Allowance
from gradward.attacks.case import AttackCase
from gradward.attacks.front import Front, knowledge_of_layer
from gradward.attacks.knowledge import Knowledge
from gradward.attacks.patches import PatchSpace, Rank
from gradward.attacks.search import Search
from gradward.attacks.search_space import search_space

# The prior shall only lead: the weight that suits other attacks is that many times too large here.
PRIOR_SHARE = 1e-3
# A map that is to be solved for must be told whole.
CLEAR = Rank(clear=4.0, enough=0.5)
# Share of the budget that solving for the map may take. It rarely needs a tenth.
SOLVING = 0.5


@dataclass(frozen=True)
class MapOptions:
    """How the map is inverted.

    Attributes:
        tv_weight: of the total variation.
        bn_weight: of the batch statistics' distance in front of the map, where the update gives
            them away. They also tell brightness and contrast, which BatchNorm hides from the map.
        prior_noise: standard deviation of what tells restarts apart.
        learned_prior: weight of an :class:`~gradward.attacks.image_prior.ImagePrior` learned from
            public images, in place of total variation; 0 learns none. Its coordinates, in which
            coarse structure moves first, save most of the evaluations that large pictures take.
    """

    tv_weight: float = 1e-4
    bn_weight: float = 1.0
    prior_noise: float = 0.02
    learned_prior: float = 0.0

    def knowledge(self, case: AttackCase) -> Knowledge:
        """State what the attack builds on: neither labels nor, without decay, the learning rate."""
        return knowledge_of_layer(case, self.learned_prior)

    def images_per_evaluation(self, case: AttackCase) -> int:
        """Return how many images one evaluation processes."""
        return case.images_per_pass

    def run(self, case: AttackCase, allowance: Allowance, generator: torch.Generator) -> Search:
        """Solve for the map, then invert it from the prior.

        Args:
            case: of one image in one step.
            allowance: of this run.
            generator: CPU generator of the noise on the prior.

        Returns:
            The search, whose images ``(1, C, H, W)`` may lie outside [0, 1].

        Raises:
            AttackRefused: more than one image or step, not SGD, no layer tells its map, or too few
                public images for a learned prior.
            FloatingPointError: the loss is not finite at the prior.
        """
        case.limit(max_images=1, max_steps=1)
        space = search_space(case, self, generator, prior_share=PRIOR_SHARE)
        loss = MapLoss(case, self.bn_weight, allowance.until(SOLVING))
        return space.descend(loss, space.start, allowance)[0]


class MapLoss:
    """Distance of a candidate image's map from the solved one, and of brightness and contrast.

    ``|P(x) / s - P*|^2 / |P*|^2`` with the map's patches P, less their mean, and the scale s that
    suits best, for the gradient tells neither.

    Args:
        case: of one image in one step.
        bn_weight: of :meth:`Front.distance`.
        allowance: to solve within.

    Attributes:
        layer: name of the convolution whose input the map is.

    Raises:
        AttackRefused: not SGD, or no layer tells its map.
    """

    def __init__(self, case: AttackCase, bn_weight: float, allowance: Allowance):
        self._bn_weight = bn_weight
        self._front = Front(case, CLEAR)
        self.layer = self._front.layer
        with torch.no_grad():
            guess, _ = self._front(case.prior[None])
        space = PatchSpace(self._front.geometry, self._front.basis)
        patches = space.nearest(guess[0], allowance)
        self._target = (patches / patches.norm()).to(case.prior)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the loss of ``images`` ``(1, C, H, W)``, a scalar."""
        maps, calls = self._front(images)
        patches = self._front.geometry.centred(maps[0])
        scale = (patches * self._target).sum()
        value = (patches / scale - self._target).square().sum()
        return value + self._front.distance(images, calls, self._bn_weight)
