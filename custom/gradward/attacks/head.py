"""The last linear layer, whose gradient tells labels and features."""

from __future__ import annotations

from torch import Tensor, nn

from gradward.attacks.observation import AttackRefused, Observation
from gradward.training import TrainingSettings


def last_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """Return the name and module of the last linear layer that trains.

    Raises:
        AttackRefused: there is none.
    """
    linear = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    ]
    if not linear:
        raise AttackRefused("the model has no linear layer at its end")
    return linear[-1]


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


def head_change(observation: Observation, settings: TrainingSettings) -> tuple[str, list[Tensor]]:
    """Return the last linear layer's name and its :func:`layer_change`.

    Raises:
        AttackRefused: no such layer, or not SGD.
    """
    name, _ = last_linear(observation.model)
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
    observation: Observation, settings: TrainingSettings
) -> tuple[str, Tensor]:
    """Return the last linear layer's name and what it was fed with by an update's only image.

    By :func:`single_input`. After several steps it is a mean over them, weighted by how wrong the
    model was at each.

    Args:
        observation: of an update by SGD on one image.
        settings: of that training, as for :func:`head_change`.

    Returns:
        Name, and ``(features,)``.

    Raises:
        AttackRefused: no such layer, no bias that moved, or not SGD.
    """
    name, change = head_change(observation, settings)
    if len(change) < 2:
        raise AttackRefused("the last linear layer has no bias that trains")
    weight, bias = change
    features = single_input(weight, bias, "last linear layer")
    if not bool(features.any()):
        raise AttackRefused("the last linear layer's weight did not move")
    return name, features
