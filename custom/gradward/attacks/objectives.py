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
    dot = torch.stack([(a * b).sum() for a, b in zip(candidate, target, strict=True)]).sum()
    ours = torch.stack([a.square().sum() for a in candidate]).sum()
    theirs = torch.stack([b.square().sum() for b in target]).sum()
    return 1 - dot / ((ours * theirs).clamp_min(TINY**2).sqrt())


def relative_distance(candidate: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Return the mean over tensors of ``|a - b|^2 / |b|^2``: each layer counts the same.

    Unlike the angle it uses the update's size, which tells of known steps and learning rate.

    Args:
        candidate: differentiable tensors, in the order and shapes of ``target``.
        target: the observed tensors; those that are zero are left out.

    Returns:
        Scalar, 0 or more.
    """
    terms = []
    for a, b in zip(candidate, target, strict=True):
        size = b.square().sum()
        if size > TINY:
            terms.append((a - b).square().sum() / size)
    return torch.stack(terms).mean()


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
    terms = []
    for (mean, var), (mean_, var_) in zip(candidate, target, strict=True):
        scale = var_.clamp_min(float(RELATIVE_VARIANCE_FLOOR * var_.mean()) + TINY)
        # The square root's slope is infinite at zero variance.
        sigma, sigma_ = var.clamp_min(TINY).sqrt(), var_.clamp_min(TINY).sqrt()
        terms.append(
            ((mean - mean_).square() / scale).mean() + ((sigma - sigma_).square() / scale).mean()
        )
    return torch.stack(terms).mean()


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels, rows plus columns.

    Anisotropic total variation of Rudin, Osher and Fatemi (1992), per pixel.

    Args:
        images: ``(B, C, H, W)``, any number of channels.
    """
    return images.diff(dim=-2).abs().mean() + images.diff(dim=-1).abs().mean()
