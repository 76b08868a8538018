"""The linear layers of a forward pass, and what the last one's gradient tells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from gradward.attacks.observation import AttackRefused, Observation
from gradward.attacks.training_copy import training_copy, twice
from gradward.training import TrainingSettings


@dataclass(frozen=True)
class LinearCalls:
    """What a forward pass of two images makes of the linear layers.

    Modules are defined in any order, and some are never called: attention reads the weights of its
    last one, and an auxiliary head may go unused.

    Attributes:
        outputs: (layer's name, shape of its output) of each call, in their order.
        logits: shape of what the network returns.
    """

    outputs: list[tuple[str, torch.Size]]
    logits: torch.Size


def linear_calls(model: nn.Module, image: Tensor) -> LinearCalls:
    """Look at one forward pass.

    Args:
        model: a :func:`training_copy`.
        image: ``(C, H, W)``, like the client's.
    """
    outputs: list[tuple[str, torch.Size]] = []

    def look(name: str, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append((name, output.shape))

    hooks = [
        layer.register_forward_hook(partial(look, name))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    with torch.no_grad():
        logits = model(twice(image.to(next(model.parameters()))))
    for hook in hooks:
        hook.remove()
    return LinearCalls(outputs, logits.shape)


def last_linear(model: nn.Module, image: Tensor) -> tuple[str, nn.Linear]:
    """Return the name and module of the linear layer that gives the logits.

    Args:
        model: it is not changed.
        image: ``(C, H, W)``, like the client's.

    Raises:
        AttackRefused: there is none, or its gradient does not tell what it was fed with.
    """
    calls = linear_calls(training_copy(model), image)
    if not calls.outputs:
        raise AttackRefused("the model has no linear layer at its end")
    names = [name for name, shape in calls.outputs if shape == calls.logits]
    if not names:
        name, shape = calls.outputs[-1]
        raise AttackRefused(
            f"the last linear layer {name!r} gives {tuple(shape[1:])} of an image, and not the "
            f"logits {tuple(calls.logits[1:])}"
        )
    name, layer = names[-1], model.get_submodule(names[-1])
    assert isinstance(layer, nn.Linear)
    if sum(called == name for called, _ in calls.outputs) > 1:
        raise AttackRefused(f"the last linear layer {name!r} is called more than once an image")
    # A weight that is computed from others, as weight norm does, or tied is not in the update.
    own = dict(model.named_parameters()).get(f"{name}.weight")
    if own is None or not own.requires_grad:
        raise AttackRefused(f"the last linear layer {name!r} has no weight of its own that trains")
    return name, layer


class InputRecorder:
    """Keeps the latest input of one layer, differentiably, as :attr:`input`.

    Args:
        model: hooked for good, so it must be a copy of one's own.
        name: of the layer.
    """

    def __init__(self, model: nn.Module, name: str):
        self.input: Tensor
        model.get_submodule(name).register_forward_pre_hook(self._record)

    def _record(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.input = inputs[0]


def momentum_gains(steps: int, momentum: float) -> list[float]:
    """Return how often each of K steps' gradients enters an update by SGD with momentum.

    ``1 + m + ... + m^(K-k)`` for the k-th: what it gave to the velocity moves all later steps too.
    """
    return [sum(momentum**power for power in range(steps - step)) for step in range(steps)]


def layer_change(observation: Observation, settings: TrainingSettings, name: str) -> list[Tensor]:
    """Return what the loss did to a layer's weight, and to its bias if that trains.

    Args:
        observation: of an update by SGD.
        settings: of that training; weight decay is taken off at the global weights, which is
            exact for one step.
        name: of the layer.

    Raises:
        AttackRefused: not SGD.
    """
    if settings.optimizer != "sgd":
        raise AttackRefused(f"an update by {settings.optimizer} is no multiple of a gradient")
    layer = observation.model.get_submodule(name)
    decay = settings.lr * settings.weight_decay * (observation.steps or settings.steps or 1)
    kinds = (
        kind for kind in ("weight", "bias") if f"{name}.{kind}" in observation.parameter_update
    )
    return [
        observation.parameter_update[f"{name}.{kind}"] + decay * layer.get_parameter(kind).detach()
        for kind in kinds
    ]


def head_change(
    observation: Observation, settings: TrainingSettings, image: Tensor
) -> tuple[str, list[Tensor]]:
    """Return the last linear layer's name and its :func:`layer_change`.

    Args:
        observation, settings: as there.
        image: ``(C, H, W)``, like the client's.

    Raises:
        AttackRefused: no such layer, or not SGD.
    """
    name, _ = last_linear(observation.model, image)
    return name, layer_change(observation, settings, name)


def single_input(weight: Tensor, bias: Tensor, layer: str) -> Tensor:
    """Return what a layer was fed with by an update's only image, ``(inputs,)``.

    The gradient of its weight is ``db h^T`` with db that of its bias, so ``h = dW^T db / |db|^2``
    (Phong et al., IEEE TIFS 2018, section 3; here by least squares over all rows).

    Args:
        weight: ``(outputs, inputs)``, what moved.
        bias: ``(outputs,)``, likewise.
        layer: for the error, in words.

    Raises:
        AttackRefused: the bias did not move.
    """
    size = bias.square().sum()
    if not bool(size > 0):
        raise AttackRefused(f"the {layer}'s bias did not move")
    return (bias @ weight) / size


def single_image_features(
    observation: Observation, settings: TrainingSettings, image: Tensor
) -> tuple[str, Tensor]:
    """Return the last linear layer's name and what it was fed with by an update's only image.

    By :func:`single_input`. After several steps it is a mean over them, weighted by how wrong the
    model was at each.

    Args:
        observation: of an update by SGD on one image.
        settings, image: as for :func:`head_change`.

    Returns:
        Name, and ``(features,)``.

    Raises:
        AttackRefused: no such layer, no bias that moved, or not SGD.
    """
    name, change = head_change(observation, settings, image)
    if len(change) < 2:
        raise AttackRefused("the last linear layer has no bias that trains")
    weight, bias = change
    features = single_input(weight, bias, "last linear layer")
    if not bool(features.any()):
        raise AttackRefused("the last linear layer's weight did not move")
    return name, features
