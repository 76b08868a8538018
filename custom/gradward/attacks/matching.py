"""Gradient inversion: candidate images whose simulated local training gives the same update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradward.attacks.case import AttackCase
from gradward.attacks.features import FeatureOptions
from gradward.attacks.knowledge import Knowledge
from gradward.attacks.objectives import (
    batch_statistics_distance,
    cosine_distance,
    total_variation,
)
from gradward.attacks.observation import AttackRefused
from gradward.attacks.search import (
    Budget,
    Search,
    descend_lbfgs,
    descend_signed_adam,
    starting_images,
)
from gradward.attacks.simulation import ClientSimulator


@dataclass(frozen=True)
class MatchingOptions:
    """How the update is matched (Geiping et al., *Inverting Gradients*, NeurIPS 2020, unrolled).

    Attributes:
        tv_weight: of the total variation.
        bn_weight: of the batch statistics' distance, where the update gives them away.
        lr: of the signed Adam at its start.
        start: ``"prior"`` or ``"random"`` (uniform in [0, 1]).
        prior_noise: standard deviation of what tells apart the copies of the prior.
        polish: share of the evaluations for a second stage, which inverts the features of a
            single image (:class:`FeatureOptions`) from where the first one ended; it is left out
            where the update does not give them away.
        max_images: larger updates are refused.
        max_steps: longer local trainings are refused; memory and time grow with them.
    """

    tv_weight: float = 0.1
    bn_weight: float = 0.3
    lr: float = 0.1
    start: Literal["prior", "random"] = "prior"
    prior_noise: float = 0.02
    polish: float = 0.5
    max_images: int = 32
    max_steps: int = 8

    def __post_init__(self) -> None:
        """Refuse what would silently mean something else."""
        if self.start not in ("prior", "random"):
            raise ValueError(f"start must be 'prior' or 'random', got {self.start!r}")
        if not 0 <= self.polish < 1:
            raise ValueError(f"polish must lie in [0, 1), got {self.polish!r}")

    def knowledge(self, case: AttackCase) -> Knowledge:
        """State what the attack builds on; labels are the case's, which knows their source."""
        return Knowledge(
            labels="inferred",
            learning_rate="given",
            batch_size="given",
            # One step has no order, and that there was one is seen or given.
            batch_order="inferred" if len(case.batches) == 1 else "lacked",
            prior="given" if self.start == "prior" else "lacked",
            local_steps="inferred" if case.observation.steps else "given",
        )

    def run(self, case: AttackCase, budget: Budget, generator: torch.Generator) -> Search:
        """Match the update, then polish what came out.

        Args:
            case: with labels.
            budget: of this run; an evaluation processes the images of all local steps.
            generator: CPU generator of the start.

        Returns:
            The search, whose images ``(n_images, C, H, W)`` may lie outside [0, 1]. Its loss is
            the matching loss also after polishing, so that it tells the better stage.

        Raises:
            AttackRefused: the client cannot be simulated, no labels, or a limit is exceeded.
            FloatingPointError: the loss is not finite at the start.
        """
        case.limit(self.max_images, self.max_steps)
        if case.labels is None:
            raise AttackRefused("the labels are not known")
        loss = self._loss(case, case.labels)
        if self.start == "prior":
            start = starting_images(case.prior, case.n_images, self.prior_noise, generator)
        else:
            shape = (case.n_images, *case.prior.shape)
            start = torch.rand(shape, generator=generator).to(case.prior)
        try:
            polishing = FeatureOptions(max_steps=self.max_steps).loss(case) if self.polish else None
        except AttackRefused:
            polishing = None
        evaluations = budget.evaluations_for(case.images_per_pass)
        second = int(self.polish * evaluations) if polishing else 0
        share = second / evaluations
        seconds = budget.seconds
        search = descend_signed_adam(
            loss, start, self.lr, evaluations - second, seconds and (1 - share) * seconds
        )
        if polishing and second > 1 and search.images is not None:
            # One evaluation is kept for the comparison of both stages.
            polished = descend_lbfgs(
                polishing, search.images, second - 1, seconds and share * seconds
            )
            search.consider(polished, loss)
        return search

    def _loss(self, case: AttackCase, labels: Tensor) -> Callable[[Tensor], Tensor]:
        simulator = ClientSimulator(case.observation, case.settings)
        target = list(case.observation.parameter_update.values())
        observed = [(layer.mean, layer.var) for layer in case.observation.batch_statistics]

        def loss(images: Tensor) -> Tensor:
            update = simulator.run(images, labels, case.batches)
            value = cosine_distance(update.parameter_updates, target)
            if observed:
                value = value + self.bn_weight * batch_statistics_distance(
                    update.batch_statistics, observed
                )
            return value + self.tv_weight * total_variation(images)

        return loss
