"""Many one-step clients at once, as functions of their images."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from gradward.attacks.training_batchnorm import TrainingBatchNorm
from gradward.attacks.training_copy import StatisticsTap, training_copy
from gradward.training import State

_CHUNK = 64


@dataclass(frozen=True)
class Steps:
    """One plain SGD step of each of V clients.

    Attributes:
        gradients: parameter name to ``(V, ...)``.
        statistics: batch mean and unbiased variance of each BatchNorm layer, each ``(V, C)``.
    """

    gradients: dict[str, Tensor]
    statistics: list[tuple[Tensor, Tensor]]


class _ElementaryBatchNorm(TrainingBatchNorm):
    """The same of torch's own operations, for `vmap` takes no others."""

    def normalise(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dims = [0, *range(2, values.ndim)]
        count = values.numel() // values.shape[1]
        var, mean = torch.var_mean(values, dim=dims, correction=0, keepdim=True)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.reshape(scale.shape)
        values = (values - mean) * scale
        if self.bias is not None:
            values = values + self.bias.reshape(scale.shape)
        return values, mean.flatten(), var.flatten() * (count / (count - 1))


class Clients:
    """Clients that all start from the same global state.

    Args:
        model: gives the architecture; it is copied.
        state: the global state.
    """

    def __init__(self, model: nn.Module, state: State) -> None:
        own = copy.deepcopy(model).train()
        own.load_state_dict(state)
        self.norms = {
            name: module for name, module in own.named_modules() if isinstance(module, _BatchNorm)
        }
        self._model = training_copy(own)
        for name, module in self.norms.items():
            self._model.set_submodule(name, _ElementaryBatchNorm(module, name))
        self._weights = {name: p.detach() for name, p in self._model.named_parameters()}

    def step(self, images: Tensor, labels: Tensor) -> Steps:
        """Return what each client's step on its batch comes to, differentiably in the images.

        Args:
            images: ``(V, n, C, H, W)``.
            labels: ``(V, n)`` int64.
        """

        def loss(
            weights: dict[str, Tensor], batch: Tensor, classes: Tensor
        ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
            with StatisticsTap(self._model, list(self.norms)) as tap:
                logits = functional_call(self._model, weights, (batch,))
            statistics = [(mean, var) for _, mean, var in tap.calls]
            return F.cross_entropy(logits, classes), statistics

        clients = vmap(grad(loss, has_aux=True), in_dims=(None, 0, 0))
        gradients, statistics = clients(self._weights, images, labels)
        return Steps(gradients, statistics)

    @torch.no_grad()
    def updates(self, images: Tensor, labels: Tensor, lr: float) -> State:
        """Return each one-image client's update, name to ``(N, ...)``, counters left out.

        Args:
            images: ``(N, C, H, W)``.
            labels: ``(N,)`` int64.
            lr: of the step.
        """
        parts: dict[str, list[Tensor]] = {}
        for picture, label in zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True):
            steps = self.step(picture[:, None], label[:, None])
            for name, value in steps.gradients.items():
                parts.setdefault(name, []).append(-lr * value)
            for (name, norm), pair in zip(self.norms.items(), steps.statistics, strict=True):
                for buffer, value in zip(("running_mean", "running_var"), pair, strict=True):
                    change = (norm.momentum or 0.0) * (value - norm.get_buffer(buffer))
                    parts.setdefault(f"{name}.{buffer}", []).append(change)
        return {name: torch.cat(values) for name, values in parts.items()}
