"""Inversion of images by what their activation maps span together.

The rows of a late convolution's gradient span the patches that all images of an update fed it with,
whatever the labels and however the steps were weighed. Of several images the maps come mixed, so
that they cannot be solved for; but hardly anything else than the images themselves makes the
network in front yield patches that span the same space. Of one image as well it is what remains
where noise on the update hides a part of the space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradward.attacks.budget import Allowance
from gradward.attacks.case import AttackCase
from gradward.attacks.drift import Drift
from gradward.attacks.front import Front, knowledge_of_layer
from gradward.attacks.knowledge import Knowledge
from gradward.attacks.observation import AttackRefused
from gradward.attacks.patches import Rank
from gradward.attacks.search import Search
from gradward.attacks.search_space import search_space

# The prior shall only lead: the weight that suits other attacks is that many times too large here.
PRIOR_SHARE = 0.01
# What noise on the update leaves visible is enough to search by.
VISIBLE = Rank(clear=2.0, enough=0.05)
# Of the patches' mean square: keeps the projection smooth where patches depend on each other.
RIDGE = 1e-4
# Shares of the budget at which weights that drift over several steps are fitted anew.
FITS = (0.1, 0.2, 0.35, 0.6, 1.0)


@dataclass(frozen=True)
class SpanOptions:
    """How the space is inverted.

    Attributes:
        tv_weight: of the total variation.
        bn_weight: of the batch statistics' distance in front of the layer, where the update gives
            them away.
        prior_noise: standard deviation of what tells apart the copies of the prior.
        learned_prior: weight of an :class:`~gradward.attacks.image_prior.ImagePrior` learned from
            public images, in place of total variation; 0 learns none. Of more than four images
            hardly anything is found without it.
        max_images: larger updates are refused.
        max_steps: longer local trainings are refused.
    """

    tv_weight: float = 1e-3
    bn_weight: float = 1.0
    prior_noise: float = 0.02
    learned_prior: float = 0.0
    max_images: int = 32
    max_steps: int = 8

    def knowledge(self, case: AttackCase) -> Knowledge:
        """State what the attack builds on: neither labels nor, without decay, the learning rate."""
        return knowledge_of_layer(case, self.learned_prior)

    def images_per_evaluation(self, case: AttackCase) -> int:
        """Return how many images one evaluation processes."""
        return case.n_images

    def run(self, case: AttackCase, allowance: Allowance, generator: torch.Generator) -> Search:
        """Search from the prior, and fit the weights' drift now and then.

        Args:
            case: of one epoch.
            allowance: of this run.
            generator: CPU generator of the noise on the prior.

        Returns:
            The last search, whose images ``(n_images, C, H, W)`` may lie outside [0, 1].

        Raises:
            AttackRefused: a limit is exceeded, images that come again, not SGD, no layer tells its
                input, or too few public images for a learned prior.
            FloatingPointError: the loss is not finite at the prior.
        """
        case.limit(self.max_images, self.max_steps)
        if case.images_per_pass > case.n_images:
            raise AttackRefused("images that come again in later epochs span more than their maps")
        ends = FITS if len(case.batches) > 1 else FITS[-1:]
        space = search_space(case, self, generator, prior_share=PRIOR_SHARE)
        loss, place = SpanLoss(case, self.bn_weight), space.start
        for end in ends:
            part = allowance.until(end)
            loss.fit_drift(space.images(place), part)
            search, place = space.descend(loss, place, part)
        return search


class SpanLoss:
    """What candidate images' patches leave out of the observed space, and brightness and contrast.

    ``1 - |Q^T B|^2 / rank`` with an orthonormal basis B of the observed rows and Q of the
    candidates' patches, each less its batch's mean: the mean squared sine between them.

    Args:
        case: of images that are each in one batch.
        bn_weight: of :meth:`Front.distance`.

    Raises:
        AttackRefused: not SGD, or no layer tells its input.
    """

    def __init__(self, case: AttackCase, bn_weight: float):
        self._bn_weight, self._batches = bn_weight, case.batches
        self._front = Front(case, VISIBLE)
        self._basis = self._front.basis.to(case.prior)
        self._drift = Drift(case.observation, case.batches)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the loss of ``images`` ``(n_images, C, H, W)``, a scalar."""
        patches, calls = [], []
        for batch in self._batches:
            maps, seen = self._front(images[batch], self._drift.weights[tuple(batch)])
            of_batch = torch.cat([self._front.geometry.cut(one) for one in maps])
            patches.append(of_batch - of_batch.mean(0))
            calls += seen
        value = left_out(self._basis, torch.cat(patches))
        return value + self._front.distance(images, calls, self._bn_weight)

    def fit_drift(self, images: Tensor, allowance: Allowance) -> None:
        """Let the weights drift along the update as far as suits ``images`` best.

        Args:
            images: ``(n_images, C, H, W)`` found so far.
            allowance: as of :meth:`Drift.fit`.
        """
        self._drift.fit(lambda: self(images), allowance)


def left_out(basis: Tensor, patches: Tensor) -> Tensor:
    """Return the mean squared sine between a space and what ``patches`` span, in [0, 1].

    Args:
        basis: ``(size, rank)``, orthonormal.
        patches: ``(count, size)``; parts that are tiny beside the others hardly count.
    """
    patches = patches / patches.square().sum(1).mean().sqrt()
    gram = patches @ patches.T
    factor = torch.linalg.cholesky(gram + RIDGE * torch.eye(len(gram)).to(gram))
    inside = torch.linalg.solve_triangular(factor, patches @ basis, upper=False)
    return 1 - inside.square().sum() / basis.shape[1]
