"""Local training as a differentiable function of the client's images."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from gradward.attacks.observation import AttackRefused, Observation, forward_weights
from gradward.hooks import HookContext
from gradward.losses import classification_loss
from gradward.training import TrainingSettings


class _EnoughSeen(Exception):
    """Ends a forward pass whose remaining layers nobody needs."""


def training_copy(model: nn.Module) -> nn.Module:
    """Copy ``model`` so that forwards leave no trace in it.

    BatchNorm layers in training mode normalise by the batch and keep no running statistics; those
    in evaluation mode stay frozen. Dropout is switched off: its masks are the client's secret, and
    no dropout is the mean over them.
    """
    own = copy.deepcopy(model)
    for module in own.modules():
        if isinstance(module, _BatchNorm) and module.training:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        elif isinstance(module, _DropoutNd):
            module.eval()
    return own


class StatisticsTap(HookContext):
    """Collects differentiable batch statistics at the inputs of BatchNorm layers, as a context.

    Args:
        model: its layers are hooked while the context is open.
        names: the layers, by their names in ``model.named_modules()``.
        stop_after: end :meth:`forward` after so many calls of these layers; None runs it through.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], stop_after: int | None = None):
        self.model = model
        self.names = list(names)
        self.stop_after = stop_after
        self.calls: list[tuple[str, Tensor, Tensor]] = []

    def hook(self) -> list[RemovableHandle]:
        """Hook the named layers."""
        return [
            self.model.get_submodule(name).register_forward_pre_hook(self._hook(name))
            for name in self.names
        ]

    def forward(self, images: Tensor) -> list[tuple[str, Tensor, Tensor]]:
        """Run ``images`` and return the calls as (name, mean, unbiased variance)."""
        self.calls = []
        with suppress(_EnoughSeen):
            self.model(images)
        return self.calls

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def collect(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            value = inputs[0]
            dims = [0, *range(2, value.ndim)]
            var, mean = torch.var_mean(value, dim=dims, correction=1)
            self.calls.append((name, mean, var))
            if len(self.calls) == self.stop_after:
                raise _EnoughSeen

        return collect


@dataclass(frozen=True)
class SimulatedUpdate:
    """What the server would have observed.

    Attributes:
        parameter_updates: after - before of the parameters that train, in the model's order.
        batch_statistics: (mean, unbiased variance) of each layer, over the batches as the running
            statistics weigh them; in the order of :attr:`ClientSimulator.layers`.
    """

    parameter_updates: list[Tensor]
    batch_statistics: list[tuple[Tensor, Tensor]]


class ClientSimulator:
    """Repeats a client's local SGD so that gradients flow from its update to its images.

    The steps are those of ``torch.optim.SGD`` with momentum and weight decay, BatchNorm as in
    training: at the client's true images, labels and batches the simulated update is the real one.

    Args:
        source: an observation, or a model at the state where local training starts (BatchNorm
            layers in evaluation mode count as frozen).
        settings: the client's: its loss, and ``lr``, ``momentum`` and ``weight_decay`` of SGD.

    Attributes:
        layers: names of the BatchNorm layers whose statistics are returned.

    Raises:
        AttackRefused: the client does not train with SGD.
    """

    def __init__(self, source: Observation | nn.Module, settings: TrainingSettings):
        if settings.optimizer != "sgd":
            # Adam's first step is the sign of the gradient: its slope is zero almost everywhere.
            raise AttackRefused(f"only sgd can be simulated, the client uses {settings.optimizer}")
        model = source.model if isinstance(source, Observation) else source
        if isinstance(source, Observation):
            self.layers = [layer.name for layer in source.batch_statistics]
        else:
            self.layers = [
                name
                for name, module in model.named_modules()
                if isinstance(module, _BatchNorm) and module.training
            ]
        self._momenta: dict[str, Any] = {
            name: model.get_submodule(name).momentum for name in self.layers
        }
        self.settings = settings
        self.model = training_copy(model)
        self._names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        self._start = [p.detach() for p in self.model.parameters() if p.requires_grad]

    def run(self, images: Tensor, labels: Tensor, batches: list[list[int]]) -> SimulatedUpdate:
        """Train on ``batches`` of ``images`` and return the update.

        Args:
            images: ``(N, C, H, W)``; where it requires a gradient, so does the update.
            labels: ``(N,)`` int64 class indices, or ``(N, classes)`` probabilities.
            batches: for each step, the indices of its images.
        """
        settings, keep_graph = self.settings, images.requires_grad
        weights = [p.clone().requires_grad_() for p in self._start]
        velocity: list[Tensor] = []
        travelled: list[Tensor] = []
        collected: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for number, batch in enumerate(batches):
            with StatisticsTap(self.model, self.layers) as tap:
                named = dict(zip(self._names, weights, strict=True))
                logits = functional_call(self.model, named, (images[batch],))
            loss = classification_loss(settings.loss, logits, labels[batch])
            slopes = torch.autograd.grad(loss, weights, create_graph=keep_graph)
            if settings.weight_decay:
                slopes = tuple(
                    g + settings.weight_decay * w for g, w in zip(slopes, weights, strict=True)
                )
            velocity = (
                [settings.momentum * v + g for v, g in zip(velocity, slopes, strict=True)]
                if velocity
                else list(slopes)
            )
            travelled = (
                [t + v for t, v in zip(travelled, velocity, strict=True)] if travelled else velocity
            )
            for name, mean, var in tap.calls:
                # Without a graph to the images there is none worth keeping to the weights.
                pair = (mean, var) if keep_graph else (mean.detach(), var.detach())
                collected[name].append(pair)
            # The weights after the last step are never used: with one step none are computed.
            if number + 1 < len(batches):
                weights = [w - settings.lr * v for w, v in zip(weights, velocity, strict=True)]
                if not keep_graph:
                    weights = [w.detach().requires_grad_() for w in weights]
        return SimulatedUpdate(
            [-settings.lr * (t if keep_graph else t.detach()) for t in travelled],
            [combine(collected[name], self._momenta[name]) for name in self.layers],
        )


def combine(
    calls: Sequence[tuple[Tensor, Tensor]], momentum: float | None
) -> tuple[Tensor, Tensor]:
    """Weigh (mean, variance) of successive forwards as running statistics do."""
    weights = forward_weights(len(calls), momentum)
    mean = torch.stack([w * m for w, (m, _) in zip(weights, calls, strict=True)]).sum(0)
    var = torch.stack([w * v for w, (_, v) in zip(weights, calls, strict=True)]).sum(0)
    return mean, var
