"""A copy of a network for simulating training, which leaves no trace in it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gradward.attacks.observation import AttackRefused
from gradward.attacks.training_batchnorm import TrainingBatchNorm

_SAME_ARITHMETIC = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


class EnoughSeen(Exception):
    """Ends a forward pass whose remaining layers nobody needs."""


def twice(image: Tensor) -> Tensor:
    """Return a batch of two copies: there are layers that refuse a single value a channel.

    Args:
        image: ``(C, H, W)``.
    """
    return image.expand(2, *image.shape)


def training_copy(model: nn.Module) -> nn.Module:
    """Copy ``model`` so that forwards leave no trace in it; parameters keep names and order.

    BatchNorm layers in training mode become :class:`TrainingBatchNorm`; those in evaluation mode
    stay frozen. Layers of dropout are switched off: the masks are the client's secret, and no
    dropout is the mean over them. For networks that call it as a function see
    :func:`gradward.attacks.dropout.dropout_left_out`.

    Raises:
        AttackRefused: a kind of BatchNorm whose arithmetic is not known.
    """
    own = copy.deepcopy(model)
    for name, module in list(own.named_modules()):
        if isinstance(module, _DropoutNd):
            module.eval()
        if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            module.dropout = 0.0
        if not isinstance(module, _BatchNorm) or not module.training:
            continue
        if type(module).forward not in _SAME_ARITHMETIC:
            raise AttackRefused(
                f"layer {name!r} is a {type(module).__name__}, a BatchNorm with arithmetic of its "
                "own, and cannot be simulated"
            )
        parent, _, child = name.rpartition(".")
        setattr(own.get_submodule(parent), child, TrainingBatchNorm(module, name))
    return own


def layer_without_second_derivative(model: nn.Module, images: Tensor) -> str | None:
    """Find a layer through which an update is no differentiable function of the images.

    Not every such layer raises an error: a function that is marked as differentiable once may cut
    the graph, and the attack would silently follow half of a slope.

    Args:
        model: a :func:`training_copy`.
        images: ``(B, C, H, W)`` to run through it.

    Returns:
        Name and kind of the first such layer, for people; None if there is none.
    """
    found: list[str] = []

    def look(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point():
            values = inputs[0].detach().clone().requires_grad_()
            with torch.enable_grad():
                # Hooks are run by calls, not by forward.
                # The copy is for layers that work in place.
                output = layer.forward(values.clone(), *inputs[1:])
                if isinstance(output, Tensor) and not _twice_differentiable(output, values):
                    found.append(f"{name!r} ({type(layer).__name__})")

    hooks = [
        layer.register_forward_pre_hook(partial(look, name))
        for name, layer in model.named_modules()
        if not list(layer.children())
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found[0] if found else None


def _twice_differentiable(output: Tensor, values: Tensor) -> bool:
    if not output.requires_grad:
        return True  # a constant
    # Squares, so that a linear layer's slope depends on its input too.
    (slope,) = torch.autograd.grad(
        output.square().sum(), values, create_graph=True, allow_unused=True
    )
    if slope is None:
        return True
    try:
        (second,) = torch.autograd.grad(slope.square().sum(), values, allow_unused=True)
    except RuntimeError:
        return False
    return second is not None


class StatisticsTap:
    """Collects differentiable batch statistics of a :func:`training_copy`'s layers, as a context.

    Args:
        model: its layers are listened to while the context is open.
        names: the layers, by their names in ``model.named_modules()``.
        stop_after: end :meth:`forward` after so many calls of these layers; None runs it through.

    Attributes:
        calls: (name, mean, unbiased variance) since the context was opened or :meth:`forward` run.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], stop_after: int | None = None):
        self.model = model
        self.stop_after = stop_after
        self.calls: list[tuple[str, Tensor, Tensor]] = []
        self._layers: list[TrainingBatchNorm] = []
        for name in names:
            layer = model.get_submodule(name)
            assert isinstance(layer, TrainingBatchNorm)
            self._layers.append(layer)

    def __enter__(self) -> Self:
        self.calls = []
        for layer in self._layers:
            layer.listeners.append(self._collect)
        return self

    def __exit__(self, *_error: object) -> None:
        for layer in self._layers:
            layer.listeners.remove(self._collect)

    def forward(
        self, images: Tensor, weights: Mapping[str, Tensor] | None = None
    ) -> list[tuple[str, Tensor, Tensor]]:
        """Run ``images`` and return the calls.

        Args:
            images: ``(B, C, H, W)``.
            weights: parameters by name that take the place of the model's own.
        """
        self.calls = []
        with suppress(EnoughSeen):
            if weights:
                functional_call(self.model, dict(weights), (images,))
            else:
                self.model(images)
        return self.calls

    def _collect(self, name: str, mean: Tensor, var: Tensor) -> None:
        self.calls.append((name, mean, var))
        if len(self.calls) == self.stop_after:
            raise EnoughSeen
