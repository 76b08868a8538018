"""Local training as a differentiable function of the client's images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from gradward.attacks.objectives import StatisticsDistance
from gradward.attacks.observation import (
    AttackRefused,
    LayerStatistics,
    Observation,
    forward_weights,
)
from gradward.attacks.training_copy import StatisticsTap, training_copy
from gradward.losses import classification_loss
from gradward.training import TrainingSettings


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
    A parameter that a step's loss does not depend on stays as it is, without weight decay too.

    Args:
        source: an observation, or a model at the state where local training starts (BatchNorm
            layers in evaluation mode count as frozen).
        settings: the client's: its loss, and ``lr``, ``momentum`` and ``weight_decay`` of SGD.

    Attributes:
        layers: names of the BatchNorm layers whose statistics are returned.

    Raises:
        AttackRefused: the client does not train with SGD, or the network has a layer whose training
            cannot be repeated; the message names it.
    """

    def __init__(self, source: Observation | nn.Module, settings: TrainingSettings):
        if settings.optimizer != "sgd":
            # Adam's first step is the sign of the gradient: its slope is zero almost everywhere.
            raise AttackRefused(f"only sgd can be simulated, the client uses {settings.optimizer}")
        if isinstance(source, Observation) and source.moved_buffers:
            layer, _, buffer = source.moved_buffers[0].rpartition(".")
            kind = type(source.model.get_submodule(layer)).__name__
            what = f"layer {layer!r} ({kind})" if layer else f"the network itself ({kind})"
            raise AttackRefused(
                f"{what} changes its buffer {buffer!r} while it trains, which cannot be simulated"
            )
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
        self._tap = StatisticsTap(self.model, self.layers)
        self._names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        self._start = [p for p in self.model.parameters() if p.requires_grad]

    def run(self, images: Tensor, labels: Tensor, batches: list[list[int]]) -> SimulatedUpdate:
        """Train on ``batches`` of ``images`` and return the update.

        Args:
            images: ``(N, C, H, W)``; where it requires a gradient, so does the update.
            labels: ``(N,)`` int64 class indices, or ``(N, classes)`` probabilities.
            batches: for each step, the indices of its images.
        """
        settings, keep_graph = self.settings, images.requires_grad
        weights: Sequence[Tensor] = self._start
        velocity: Sequence[Tensor | None] = ()
        travelled: Sequence[Tensor] = ()
        collected: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for number, batch in enumerate(batches):
            with self._tap:
                # Where all images share a batch, indexing would only copy them.
                whole = batch == list(range(len(images)))
                pictures, truths = (images, labels) if whole else (images[batch], labels[batch])
                logits = self._logits(pictures, weights)
            loss = classification_loss(settings.loss, logits, truths)
            # Steps, not slopes: the learning rate then costs one product instead of one a weight.
            rate = torch.full_like(loss, -settings.lr)
            steps = torch.autograd.grad(
                loss, weights, rate, create_graph=keep_graph, allow_unused=True
            )
            velocity = [
                self._velocity(*one)
                for one in zip(steps, weights, velocity or [None] * len(weights), strict=True)
            ]
            # What the loss does not depend on torch leaves alone, whatever velocity it had.
            moves = [
                torch.zeros_like(w) if s is None or v is None else v
                for s, v, w in zip(steps, velocity, weights, strict=True)
            ]
            travelled = (
                [t + m for t, m in zip(travelled, moves, strict=True)] if travelled else moves
            )
            for name, mean, var in self._tap.calls:
                # Without a graph to the images there is none worth keeping to the weights.
                pair = (mean, var) if keep_graph else (mean.detach(), var.detach())
                collected[name].append(pair)
            # The weights after the last step are never used: with one step none are computed.
            if number + 1 < len(batches):
                weights = [w + m for w, m in zip(weights, moves, strict=True)]
                if not keep_graph:
                    weights = [w.detach().requires_grad_() for w in weights]
        return SimulatedUpdate(
            [t if keep_graph else t.detach() for t in travelled],
            [combine(collected[name], self._momenta[name]) for name in self.layers],
        )

    def _velocity(
        self, step: Tensor | None, weight: Tensor, velocity: Tensor | None
    ) -> Tensor | None:
        """Return a parameter's velocity behind a step, None as long as it never moved."""
        if step is None:
            return velocity
        settings = self.settings
        if settings.weight_decay:
            step = step - settings.lr * settings.weight_decay * weight
        if velocity is not None and settings.momentum:
            step = settings.momentum * velocity + step
        return step

    def _logits(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        if weights is self._start:
            logits: Tensor = self.model(images)
            return logits
        named = dict(zip(self._names, weights, strict=True))
        logits = functional_call(self.model, named, (images,))
        return logits


def combine(
    calls: Sequence[tuple[Tensor, Tensor]], momentum: float | None
) -> tuple[Tensor, Tensor]:
    """Weigh (mean, variance) of successive forwards as running statistics do."""
    if len(calls) == 1:
        return calls[0]
    weights = forward_weights(len(calls), momentum)
    mean = torch.stack([w * m for w, (m, _) in zip(weights, calls, strict=True)]).sum(0)
    var = torch.stack([w * v for w, (_, v) in zip(weights, calls, strict=True)]).sum(0)
    return mean, var


def combine_calls(
    calls: Iterable[tuple[str, Tensor, Tensor]], layers: Sequence[LayerStatistics]
) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's (mean, variance) of all local steps, weighed as running statistics do.

    Args:
        calls: (name, mean, unbiased variance) in the order of the steps, as a
            :class:`StatisticsTap` collects them; each layer must be among them.
        layers: observed.
    """
    collected: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for name, mean, var in calls:
        collected[name].append((mean, var))
    return [combine(collected[layer.name], layer.momentum) for layer in layers]


class CallsDistance:
    """How far forwards' batch statistics are from the observed ones.

    Args:
        layers: observed.
    """

    def __init__(self, layers: Sequence[LayerStatistics]):
        self._layers = layers
        self._distance = StatisticsDistance([(layer.mean, layer.var) for layer in layers])

    def __call__(self, calls: Iterable[tuple[str, Tensor, Tensor]]) -> Tensor:
        """Return a scalar.

        Args:
            calls: as of :func:`combine_calls`.
        """
        return self._distance(combine_calls(calls, self._layers))
