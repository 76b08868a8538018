"""BatchNorm in training mode that tells its batch statistics and differentiates in closed form.

torch's own does not hand out the statistics, and takes second derivatives through dozens of small
operations, which cost much of a small network's gradient matching.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from gradward.attacks.observation import AttackRefused

Listener = Callable[[str, Tensor, Tensor], None]


class TrainingBatchNorm(nn.Module):
    """BatchNorm in training mode, without running statistics, twice differentiable.

    Args:
        norm: whose weight and bias, if any, it shares.
        name: of the layer, for errors.

    Attributes:
        listeners: called with the layer's name and the mean and unbiased variance of each batch,
            both ``(C,)``.
    """

    def __init__(self, norm: _BatchNorm, name: str):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.name = name
        self.listeners: list[Listener] = []

    def forward(self, values: Tensor) -> Tensor:
        """Normalise ``(B, C, ...)`` by the batch.

        Raises:
            AttackRefused: a single value a channel, on which torch cannot train either.
        """
        if values.numel() // values.shape[1] < 2:
            raise AttackRefused(
                f"layer {self.name!r} gets one value a channel: no client can train on such a batch"
            )
        normalised, mean, var = self.normalise(values)
        for listener in self.listeners:
            listener(self.name, mean, var)
        return normalised

    def normalise(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised values, and their mean and unbiased variance, each ``(C,)``."""
        channels = values.shape[1]
        weight = values.new_ones(channels) if self.weight is None else self.weight
        bias = values.new_zeros(channels) if self.bias is None else self.bias
        result: tuple[Tensor, Tensor, Tensor] = _Normalise.apply(values, weight, bias, self.eps)
        return result


class _Normalise(torch.autograd.Function):
    """``(x, weight, bias)`` to ``(y, mean, unbiased variance)``."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Running statistics of momentum 1 are those of the batch, as the client computes them.
        mean, var = values.new_zeros(2, values.shape[1]).unbind()
        y, _, inverse = torch.native_batch_norm(values, weight, bias, mean, var, True, 1.0, eps)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(values, weight, mean, inverse)
        return y, mean, var

    @staticmethod
    def backward(
        ctx: Any, slope: Tensor | None, of_mean: Tensor | None, of_var: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        values, weight, mean, inverse = ctx.saved_tensors
        count = values.numel() // values.shape[1]
        of_values = of_weight = of_bias = None
        if slope is not None:
            slopes = _Slopes.apply if torch.is_grad_enabled() else _backward
            of_values, of_weight, of_bias = slopes(slope, values, weight, mean, inverse)
        if of_mean is not None:
            part = _wide(of_mean / count, values)
            of_values = part.expand_as(values) if of_values is None else of_values + part
        if of_var is not None:
            part, centred = _wide(of_var * (2 / (count - 1)), values), values - _wide(mean, values)
            of_values = part * centred if of_values is None else of_values.addcmul(part, centred)
        return of_values, of_weight, of_bias, None


class _Slopes(torch.autograd.Function):
    """The slopes by ``(x, weight, bias)``, given that by y."""

    @staticmethod
    def forward(
        ctx: Any, slope: Tensor, values: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        slopes = _backward(slope, values, weight, mean, inverse)
        ctx.save_for_backward(slope, values, weight, mean, inverse, slopes[1])
        return slopes

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g: Tensor, g_weight: Tensor, g_bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the slopes by ``(s, x, weight)``, s being the slope by y.

        With ``n = (x - mean) r``, r the inverse deviation and N values a channel, the forward is
        ``(weight r P(s), sum(s n), sum(s))``, where ``P(s) = s - mean(s) - n mean(s n)`` is
        symmetric and ``r P`` is also the way back from n to x.
        """
        s, values, weight, mean, r, sum_sn = ctx.saved_tensors
        scale = weight * r * (values.shape[1] / values.numel())
        back, sum_gn, _ = _backward(g, values, None, mean, r)
        of_weight = (s * back).sum([0, *range(2, s.ndim)])
        n = (values - _wide(mean, values)).mul_(_wide(r, values))

        of_s = back * _wide(weight, s)
        of_s.addcmul_(n, _wide(g_weight, s)).add_(_wide(g_bias, s))
        # By way of n in both of its places, and of r.
        of_values, _, _ = _backward(s, values, g_weight - scale * sum_gn, mean, r)
        of_values.addcmul_(back, _wide(scale * sum_sn, s), value=-1)
        of_values.addcmul_(n, _wide(scale * of_weight, s), value=-1)
        return of_s, of_values, of_weight, None, None


def _backward(
    slope: Tensor, values: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    slopes: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        slope, values, weight, None, None, mean, inverse, True, 0.0, [True, True, True]
    )
    return slopes


def _wide(of_channels: Tensor, values: Tensor) -> Tensor:
    return of_channels.reshape(-1, *[1] * (values.ndim - 2))
