"""Inversion of what the last linear layer's gradient tells of the features in front of it.

It needs one forward pass and no second derivative, so that L-BFGS gets far. BatchNorm buffers help
but may be withheld.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradward.attacks.budget import Allowance
from gradward.attacks.case import AttackCase, Start, check_start
from gradward.attacks.frozen_client import FrozenClient, Pass
from gradward.attacks.head import head_change, single_image_features
from gradward.attacks.knowledge import Knowledge, Source
from gradward.attacks.objectives import RelativeDistance
from gradward.attacks.search import Search
from gradward.attacks.search_space import search_space
from gradward.attacks.simulation import CallsDistance


@dataclass(frozen=True)
class FeatureOptions:
    """How the last layer's gradient is inverted.

    Attributes:
        tv_weight: of the total variation.
        bn_weight: of the batch statistics' distance, where the update gives them away.
        start: ``"prior"`` or ``"random"`` (uniform in [0, 1]); a learned prior has its own, the
            former.
        prior_noise: standard deviation of what tells apart the copies of the prior, and restarts.
        learned_prior: weight of an :class:`~gradward.attacks.image_prior.ImagePrior` learned from
            public images, in place of total variation; 0 learns none.
        max_images: larger updates are refused.
        max_steps: longer local trainings are refused: their features are too blurred.
    """

    tv_weight: float = 0.01
    bn_weight: float = 1.0
    start: Start = "prior"
    prior_noise: float = 0.02
    learned_prior: float = 0.0
    max_images: int = 32
    max_steps: int = 8

    def __post_init__(self) -> None:
        """Refuse what would silently mean something else."""
        check_start(self.start, self.learned_prior)

    def knowledge(self, case: AttackCase) -> Knowledge:
        """State what the attack builds on: of a single image, hardly anything."""
        single, decays = case.n_images == 1, case.settings.weight_decay > 0
        one_step = len(case.batches) == 1
        told: Source = "lacked" if single and not decays else "given"
        return Knowledge(
            labels="lacked" if single else "inferred",
            learning_rate="given" if decays or not single else "lacked",
            batch_size="lacked" if single or one_step else "given",
            batch_order=case.batch_order,
            prior="given" if self.start == "prior" else "lacked",
            local_steps="inferred" if case.observation.steps else told,
            public_images="given" if self.learned_prior else "lacked",
        )

    def images_per_evaluation(self, case: AttackCase) -> int:
        """Return how many images one evaluation processes."""
        return case.images_per_pass

    def run(self, case: AttackCase, allowance: Allowance, generator: torch.Generator) -> Search:
        """Invert from the start.

        Args:
            case: with labels, if of more than one image.
            allowance: of this run.
            generator: CPU generator of the start.

        Returns:
            The search, whose images ``(n_images, C, H, W)`` may lie outside [0, 1].

        Raises:
            AttackRefused: a limit is exceeded, no labels, no features in the update, or too few
                public images for a learned prior.
            FloatingPointError: the loss is not finite at the start.
        """
        loss = HeadLoss(case, self)
        space = search_space(case, self, generator, start=self.start)
        return space.descend(loss, space.start, allowance)[0]


class HeadLoss:
    """Distance of candidate images' features, or last layer's gradient, and batch statistics'.

    Of one image the features ``h`` themselves are known: ``|h - h*|^2 / |h*|^2``, without a label.
    Of several only ``sum_i slope_i h_i^T`` is, in which the label tells the slope: relative squares
    of that layer's gradient. The weights stay at the global state, which is exact for one step.

    Args:
        case: with labels, if of more than one image.
        options: limits and weights.

    Raises:
        AttackRefused: a limit is exceeded, no labels, or no features in the update.
    """

    def __init__(self, case: AttackCase, options: FeatureOptions):
        case.limit(options.max_images, options.max_steps)
        observation, settings = case.observation, case.settings
        self._labels = None
        if case.n_images == 1:
            name, features = single_image_features(observation, settings, case.prior)
            self._target = [features]
        else:
            # Before the labels, which help nothing where this layer tells nothing.
            name, self._target = head_change(observation, settings, case.prior)
            self._labels = case.known_labels()
        self._pixels = case.n_images * case.prior.numel()
        self._options, self._steps = options, len(case.batches)
        self._client = FrozenClient(observation, settings, case.batches, name)
        self._distance = RelativeDistance(self._target)
        layers = observation.batch_statistics
        self._of_statistics = CallsDistance(layers) if layers else None

    @property
    def determines_images(self) -> bool:
        """Whether the layer's gradient has as many independent values as the images have pixels.

        Its rank is below the number of classes, for the slopes of an image add up to zero. After
        several steps the weights have moved too far from where this loss holds them.
        """
        classes, features = self._target[0].shape
        return self._steps == 1 and (classes - 1) * features >= self._pixels

    def __call__(self, images: Tensor) -> Tensor:
        """Return the loss of ``images`` ``(n_images, C, H, W)``, a scalar."""
        passes = self._client.passes(images)
        value = self._distance(self._told(passes))
        if self._of_statistics:
            calls = [call for item in passes for call in item.statistics]
            value = value + self._options.bn_weight * self._of_statistics(calls)
        return value

    def _told(self, passes: list[Pass]) -> list[Tensor]:
        """Return what :attr:`_target` would be of these passes."""
        if self._labels is None:
            return [passes[0].features[0]]
        return self._client.head_change(passes, self._labels)[: len(self._target)]
