"""What an attack minimises: distances between updates, batch statistics, and smoothness."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Statistics = Sequence[tuple[Tensor, Tensor]]

# A channel that is (nearly) constant would otherwise outweigh all others through rounding alone.
RELATIVE_VARIANCE_FLOOR = 1e-5
TINY = 1e-20


def cosine_distance(candidate: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Return ``1 - cos`` of the angle between two updates, all tensors taken as one vector.

    Geiping et al., *Inverting Gradients* (NeurIPS 2020), equation 4, for updates.

    Args:
        candidate: differentiable tensors, in the order and shapes of ``target``.
        target: the observed tensors.

    Returns:
        Scalar in [0, 2]; 1 where the candidate is zero.
    """
    # Dot products make no copies, and the largest networks have ten million weights.
    flat = [(a.flatten(), b.flatten()) for a, b in zip(candidate, target, strict=True)]
    dot = torch.stack([torch.dot(a, b) for a, b in flat]).sum()
    ours = torch.stack([torch.dot(a, a) for a, _ in flat]).sum()
    theirs = torch.stack([torch.dot(b, b) for _, b in flat]).sum()
    return 1 - dot / ((ours * theirs).clamp_min(TINY**2).sqrt())


def relative_distance(candidate: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Return ``|a - b|^2 / |b|^2`` of two updates, all tensors taken as one vector.

    Unlike the angle it uses the update's size, which tells of known steps and learning rate.

    Args:
        candidate: differentiable tensors, in the order and shapes of ``target``.
        target: the observed tensors.

    Returns:
        Scalar, 0 or more.
    """
    gap = torch.stack([(a - b).square().sum() for a, b in zip(candidate, target, strict=True)])
    size = torch.stack([b.square().sum() for b in target]).sum()
    return gap.sum() / size.clamp_min(TINY)


def batch_statistics_distance(candidate: Statistics, target: Statistics) -> Tensor:
    """Return how far batch statistics are apart, in units of the target's deviations.

    ``mean((mu - mu*)^2 / var*) + mean((sigma - sigma*)^2 / var*)`` over the channels of a layer,
    averaged over layers. After Yin et al., *See through Gradients* (CVPR 2021), equation 6, whose
    plain norms let a few wide layers decide.

    Args:
        candidate: ``(mean, unbiased variance)``, each ``(C,)``, for each layer.
        target: the observed ones, same order.

    Returns:
        Scalar, 0 or more.
    """
    mean, var = (torch.cat(parts) for parts in zip(*candidate, strict=True))
    mean_, var_ = (torch.cat(parts) for parts in zip(*target, strict=True))
    with torch.no_grad():
        sizes = torch.tensor([len(v) for _, v in target], device=var_.device)
        floors = torch.stack([RELATIVE_VARIANCE_FLOOR * v.mean() + TINY for _, v in target])
        scale = torch.maximum(var_, floors.repeat_interleave(sizes))
        weight = (1 / (sizes * len(sizes))).repeat_interleave(sizes) / scale
        sigma_ = var_.clamp_min(TINY).sqrt()
    # The square root's slope is infinite at zero variance.
    sigma = var.clamp_min(TINY).sqrt()
    return ((mean - mean_).square() + (sigma - sigma_).square()) @ weight.to(var)


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels, rows plus columns.

    Anisotropic total variation of Rudin, Osher and Fatemi (1992), per pixel.

    Args:
        images: ``(B, C, H, W)``, any number of channels.
    """
    return images.diff(dim=-2).abs().mean() + images.diff(dim=-1).abs().mean()
