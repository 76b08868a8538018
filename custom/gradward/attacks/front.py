"""The network in front of the first convolution whose gradient tells what it was fed with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gradward.attacks.case import AttackCase
from gradward.attacks.head import InputRecorder, layer_change
from gradward.attacks.knowledge import Knowledge
from gradward.attacks.observation import AttackRefused
from gradward.attacks.patches import Geometry, Rank, geometries, told_patches
from gradward.attacks.simulation import CallsDistance
from gradward.attacks.training_copy import EnoughSeen, StatisticsTap, training_copy, twice

# Weight of what nothing tells; any that outweighs the total variation does.
UNTOLD = 0.01


class Front:
    """Forwards up to that convolution, and what the update tells of them.

    Of all layers that tell their input it is the first, whose maps hold the most.

    Args:
        case: whose images are each in the update once.
        rank: what of the gradient counts.

    Attributes:
        layer: name of the convolution.
        geometry: of it.
        basis: ``(C * taps, rank)``, orthonormal, double precision, of all images' patches less
            their mean over the batch.

    Raises:
        AttackRefused: not SGD, or no layer tells its input.
    """

    def __init__(self, case: AttackCase, rank: Rank):
        observation = case.observation
        model = training_copy(observation.model).requires_grad_(False)
        self.layer, self.geometry, self.basis = _first_told(
            case, rank, geometries(model, case.prior)
        )
        self._recorder = InputRecorder(model, self.layer)
        model.get_submodule(self.layer).register_forward_pre_hook(_end)
        layers = observation.batch_statistics
        self._tap = StatisticsTap(model, [layer.name for layer in layers])
        with torch.no_grad(), self._tap:
            seen = self._tap.forward(twice(case.prior))
        in_front = {layer for layer, _, _ in seen}
        layers = tuple(layer for layer in layers if layer.name in in_front)
        self._of_statistics = CallsDistance(layers) if layers else None
        self._prior = case.prior

    def __call__(
        self, images: Tensor, weights: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, list[tuple[str, Tensor, Tensor]]]:
        """Return the layer's input ``(B, C, H, W)`` and the batch statistics on the way.

        Args:
            images: ``(B, C, H, W)``, one batch.
            weights: parameters by name that take the place of the global state's.
        """
        with self._tap:
            calls = list(self._tap.forward(images, weights))
        return self._recorder.input, calls

    def distance(
        self, images: Tensor, calls: list[tuple[str, Tensor, Tensor]], weight: float
    ) -> Tensor:
        """Return how far brightness and contrast, which BatchNorm hides from the maps, are off.

        The batch statistics in front tell them. Where the update has none they stay the prior's:
        else the least total variation would be that of a picture without contrast.

        Args:
            images: ``(N, C, H, W)``.
            calls: of all their forwards.
            weight: of the statistics' distance.
        """
        if self._of_statistics:
            return weight * self._of_statistics(calls)
        means, deviations = images.mean((1, 2, 3)), images.std((1, 2, 3))
        off = (means - self._prior.mean()).square() + (deviations - self._prior.std()).square()
        return UNTOLD * off.mean()


def knowledge_of_layer(case: AttackCase, learned_prior: float) -> Knowledge:
    """State what an attack on that layer builds on.

    Neither labels nor, without decay, the learning rate.
    """
    return Knowledge(
        labels="lacked",
        learning_rate="given" if case.settings.weight_decay > 0 else "lacked",
        batch_size="lacked" if len(case.batches) == 1 else "given",
        batch_order=case.batch_order,
        prior="given",
        local_steps="inferred" if case.observation.steps else "given",
        public_images="given" if learned_prior else "lacked",
    )


def _first_told(
    case: AttackCase, rank: Rank, found: Mapping[str, Geometry]
) -> tuple[str, Geometry, Tensor]:
    for name, geometry in found.items():
        if f"{name}.weight" not in case.observation.parameter_update:
            continue
        change = layer_change(case.observation, case.settings, name)[0]
        basis = told_patches(geometry, change, rank, case.n_images)
        if basis is not None:
            return name, geometry, basis
    raise AttackRefused(
        "no convolution's gradient tells its input: none in front of BatchNorm has more channels "
        "than positions of all images, or they drown in noise"
    )


def _end(_layer: object, _inputs: object) -> None:
    raise EnoughSeen
