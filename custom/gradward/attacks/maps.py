"""Inversion of a whole activation map, which a late convolution's gradient tells to the last digit.

BatchNorm's buffers may be withheld, and no label is needed. What is left to search for is the image
behind a map of more values than it has pixels, by one forward pass through the front of the
network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradward.attacks.budget import Allowance
from gradward.attacks.case import AttackCase
from gradward.attacks.head import InputRecorder, layer_change
from gradward.attacks.image_prior import descend_within, learn_prior
from gradward.attacks.knowledge import Knowledge
from gradward.attacks.objectives import total_variation
from gradward.attacks.observation import AttackRefused
from gradward.attacks.patches import PatchSpace, end_at, geometries, told_patches
from gradward.attacks.search import Search, descend_lbfgs
from gradward.attacks.simulation import CallsDistance
from gradward.attacks.training_copy import StatisticsTap, training_copy

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
        return Knowledge(
            labels="lacked",
            learning_rate="given" if case.settings.weight_decay > 0 else "lacked",
            batch_size="lacked",
            batch_order="inferred",
            prior="given",
            local_steps="inferred" if case.observation.steps else "given",
            public_images="given" if self.learned_prior else "lacked",
        )

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
        if self.learned_prior:
            prior = learn_prior(case)
            rough = MapLoss(case, replace(self, tv_weight=0.0), allowance.until(SOLVING))
            start = prior.start(case, generator)
            return descend_within(prior, self.learned_prior, rough, start, allowance)[0]
        loss = MapLoss(case, self, allowance.until(SOLVING))
        return descend_lbfgs(loss, case.copies_of_prior(self.prior_noise, generator), allowance)


class MapLoss:
    """Distance of a candidate image's map from the solved one, plus the regularisers.

    ``|P(x) / s - P*|^2 / |P*|^2`` with the map's patches P, less their mean, and the scale s that
    suits best, for the gradient tells neither. Of all layers that tell their map it is the first,
    whose map holds the most.

    Args:
        case: of one image in one step.
        options: weights.
        allowance: to solve within.

    Attributes:
        layer: name of the convolution whose input the map is.

    Raises:
        AttackRefused: not SGD, or no layer tells its map.
    """

    def __init__(self, case: AttackCase, options: MapOptions, allowance: Allowance):
        observation = case.observation
        self._options = options
        self._model = training_copy(observation.model).requires_grad_(False)
        for name, geometry in geometries(self._model, case.prior).items():
            if f"{name}.weight" not in observation.parameter_update:
                continue
            change = layer_change(observation, case.settings, name)[0]
            basis = told_patches(geometry, change)
            if basis is not None:
                break
        else:
            raise AttackRefused(
                "no convolution's gradient tells its input: none in front of BatchNorm has more "
                "channels than positions, or they drown in noise"
            )
        self.layer, self._geometry = name, geometry
        self._recorder = InputRecorder(self._model, name)
        end_at(self._model, name)
        layers = observation.batch_statistics
        self._tap = StatisticsTap(self._model, [layer.name for layer in layers])
        with torch.no_grad(), self._tap:
            in_front = {layer for layer, _, _ in self._tap.forward(case.prior[None])}
        layers = tuple(layer for layer in layers if layer.name in in_front)
        self._of_statistics = CallsDistance(layers) if layers else None
        patches = PatchSpace(geometry, basis).nearest(self._recorder.input[0], allowance)
        self._target = (patches / patches.norm()).to(case.prior)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the loss of ``images`` ``(1, C, H, W)``, a scalar."""
        with self._tap:
            calls = self._tap.forward(images)
        patches = self._geometry.centred(self._recorder.input[0])
        scale = (patches * self._target).sum()
        value = (patches / scale - self._target).square().sum()
        if self._of_statistics:
            value = value + self._options.bn_weight * self._of_statistics(calls)
        return value + self._options.tv_weight * total_variation(images)
