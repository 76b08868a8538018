"""Inversion of the features that the last linear layer's gradient gives away.

For one image they are exact, whatever the network in front; no label is needed, and BatchNorm
buffers help but may be withheld.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradward.attacks.budget import Allowance
from gradward.attacks.case import AttackCase
from gradward.attacks.head import InputRecorder, single_image_features
from gradward.attacks.knowledge import Knowledge
from gradward.attacks.objectives import batch_statistics_distance, total_variation
from gradward.attacks.observation import AttackRefused
from gradward.attacks.search import Search, descend_lbfgs
from gradward.attacks.simulation import StatisticsTap, combine, training_copy


@dataclass(frozen=True)
class FeatureOptions:
    """How the features are inverted.

    Attributes:
        tv_weight: of the total variation.
        bn_weight: of the batch statistics' distance, where the update gives them away.
        prior_noise: standard deviation of the noise by which restarts differ.
        max_steps: longer local trainings are refused: their features are too blurred.
    """

    tv_weight: float = 0.01
    bn_weight: float = 1.0
    prior_noise: float = 0.05
    max_steps: int = 8

    def knowledge(self, case: AttackCase) -> Knowledge:
        """State what the attack builds on."""
        decays = case.settings.weight_decay > 0
        return Knowledge(
            labels="lacked",
            learning_rate="given" if decays else "lacked",
            batch_size="lacked",
            batch_order="lacked",
            prior="given",
            local_steps="inferred" if case.observation.steps else "lacked",
        )

    def images_per_evaluation(self, case: AttackCase) -> int:
        """Return how many images one evaluation processes."""
        return 1

    def run(self, case: AttackCase, allowance: Allowance, generator: torch.Generator) -> Search:
        """Invert from the prior.

        Args:
            case: of one image.
            allowance: of this run.
            generator: CPU generator of a restart's noise on the prior; the first run has none.

        Returns:
            The search, whose images ``(1, C, H, W)`` may lie outside [0, 1].

        Raises:
            AttackRefused: more than one image, too many steps, or no features in the update.
            FloatingPointError: the loss is not finite at the prior.
        """
        loss = self.loss(case)
        return descend_lbfgs(loss, case.copies_of_prior(self.prior_noise, generator), allowance)

    def loss(self, case: AttackCase) -> Callable[[Tensor], Tensor]:
        """Return ``|h - h*|^2 / |h*|^2`` plus the regularisers, the weights at the global state.

        Raises:
            AttackRefused: as :meth:`run`.
        """
        if case.n_images > 1:
            raise AttackRefused(f"the features of {case.n_images} images are mixed in their sum")
        case.limit(1, self.max_steps)
        name, target = single_image_features(case.observation, case.settings)
        scale = target.square().sum()
        model = training_copy(case.observation.model).requires_grad_(False)
        recorder = InputRecorder(model, name)
        layers = case.observation.batch_statistics

        def loss(images: Tensor) -> Tensor:
            with StatisticsTap(model, [layer.name for layer in layers]) as tap:
                calls = tap.forward(images)
            value = (recorder.input[0] - target).square().sum() / scale
            if layers:
                candidate = [
                    combine([(m, v) for name, m, v in calls if name == layer.name], layer.momentum)
                    for layer in layers
                ]
                observed = [(layer.mean, layer.var) for layer in layers]
                value = value + self.bn_weight * batch_statistics_distance(candidate, observed)
            return value + self.tv_weight * total_variation(images)

        return loss
