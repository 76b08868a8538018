"""What an attack minimises: distances between updates, batch statistics, and smoothness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Statistics = Sequence[tuple[Tensor, Tensor]]

# A channel that is (nearly) constant would otherwise outweigh all others through rounding alone.
RELATIVE_VARIANCE_FLOOR = 1e-5
TINY = 1e-20
# Values of a tensor up to which an operation on it costs more than a copy.
SMALL = 2**16


class CosineDistance:
    """``1 - cos`` of the angle between updates, all tensors taken as one vector.

    Geiping et al., *Inverting Gradients* (NeurIPS 2020), equation 4, for updates.

    Args:
        target: the observed tensors.
    """

    def __init__(self, target: Sequence[Tensor]):
        self._target = _packed(target)
        self._norm = _dot(self._target, self._target).sqrt()

    def __call__(self, candidate: Sequence[Tensor]) -> Tensor:
        """Return a scalar in [0, 2]; 1 where the candidate is zero.

        Args:
            candidate: differentiable tensors, in the order and shapes of the target.
        """
        distance: Tensor = _Cosine.apply(self._target, self._norm, *_packed(candidate))
        return distance


class _Cosine(torch.autograd.Function):
    """In closed form: the largest networks have ten million weights, and few fit in a cache."""

    @staticmethod
    def forward(ctx: Any, target: list[Tensor], theirs: Tensor, *candidate: Tensor) -> Tensor:
        ours = _dot(candidate, candidate).sqrt()
        size = (ours * theirs).clamp_min(TINY)
        cosine = _dot(candidate, target) / size
        ctx.target = target
        ctx.save_for_backward(cosine / ours.clamp_min(TINY).square(), 1 / size, *candidate)
        return 1 - cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        by_candidate, by_target, *candidate = ctx.saved_tensors
        by_candidate, by_target = slope * by_candidate, -slope * by_target
        slopes = [
            (a * by_candidate).addcmul_(b, by_target)
            for a, b in zip(candidate, ctx.target, strict=True)
        ]
        return None, None, *slopes


def _packed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the same values as few vectors, the small tensors together."""
    small = [tensor.flatten() for tensor in tensors if tensor.numel() <= SMALL]
    large = [tensor.flatten() for tensor in tensors if tensor.numel() > SMALL]
    return [torch.cat(small), *large] if small else large


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.dot(a, b) for a, b in zip(left, right, strict=True)]).sum()


class RelativeDistance:
    """``|a - b|^2 / |b|^2`` of updates, all tensors taken as one vector.

    Unlike the angle it uses the update's size, which tells of known steps and learning rate.

    Args:
        target: the observed tensors.
    """

    def __init__(self, target: Sequence[Tensor]):
        self._target = _packed(target)
        self._size = _dot(self._target, self._target).clamp_min(TINY)

    def __call__(self, candidate: Sequence[Tensor]) -> Tensor:
        """Return a scalar, 0 or more.

        Args:
            candidate: differentiable tensors, in the order and shapes of the target.
        """
        pairs = zip(_packed(candidate), self._target, strict=True)
        return torch.stack([(a - b).square().sum() for a, b in pairs]).sum() / self._size


class StatisticsDistance:
    """How far batch statistics are apart, in units of the target's deviations.

    ``mean((mu - mu*)^2 / var*) + mean((sigma - sigma*)^2 / var*)`` over the channels of a layer,
    averaged over layers. After Yin et al., *See through Gradients* (CVPR 2021), equation 6, whose
    plain norms let a few wide layers decide.

    Args:
        target: observed ``(mean, unbiased variance)``, each ``(C,)``, for each layer.
    """

    def __init__(self, target: Statistics):
        self._mean, var = (torch.cat(parts) for parts in zip(*target, strict=True))
        sizes = torch.tensor([len(v) for _, v in target], device=var.device)
        floors = torch.stack([RELATIVE_VARIANCE_FLOOR * v.mean() + TINY for _, v in target])
        scale = torch.maximum(var, floors.repeat_interleave(sizes))
        self._weight = (1 / (sizes * len(sizes))).repeat_interleave(sizes).to(var) / scale
        self._sigma = var.clamp_min(TINY).sqrt()

    def __call__(self, candidate: Statistics) -> Tensor:
        """Return a scalar, 0 or more.

        Args:
            candidate: differentiable, in the order of the target.
        """
        mean, var = (torch.cat(parts) for parts in zip(*candidate, strict=True))
        # The square root's slope is infinite at zero variance.
        sigma = var.clamp_min(TINY).sqrt()
        return ((mean - self._mean).square() + (sigma - self._sigma).square()) @ self._weight


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels, rows plus columns.

    Anisotropic total variation of Rudin, Osher and Fatemi (1992), per pixel.

    Args:
        images: ``(B, C, H, W)``, any number of channels.
    """
    return images.diff(dim=-2).abs().mean() + images.diff(dim=-1).abs().mean()
