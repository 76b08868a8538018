"""How much of a picture was recovered, beyond what a good guess gives anyway."""

from __future__ import annotations

import torch
from torch import Tensor

# SSIM in float32 knows 1 no better than this.
_ONE = 1 - 1e-6


def rdlv(s: Tensor, p: Tensor) -> Tensor:
    """Relative data leakage value ``(s - p) / p`` (Hatamizadeh et al., arXiv 2202.06924).

    Its ceiling, ``1/p - 1``, depends on the picture: RDLVs of different pictures do not compare.

    Args:
        s: similarity of the reconstruction to the truth, at most 1, any shape.
        p: similarity of the prior to the truth, same shape.

    Returns:
        Same shape, float64, at most ``1/p - 1``; 0 where the reconstruction is no better than the
        prior; nan where ``p <= 0``, where the ratio has no meaning.

    Raises:
        ValueError: shapes differ.
    """
    s, p = _alike(s, p)
    return torch.where(p > 0, (s - p) / p, torch.nan)


def recovered_fraction(s: Tensor, p: Tensor) -> Tensor:
    """Share ``(s - p) / (1 - p)`` of what a good guess leaves open that was recovered.

    Args:
        s: similarity of the reconstruction to the truth, at most 1, any shape.
        p: similarity of the best guess without the update (prior or public mean), same shape.

    Returns:
        Same shape, float64; 1 for a perfect reconstruction, 0 for one as good as the guess,
        negative for a worse one; nan at ``p = 1`` (within 1e-6), where nothing is left to recover.

    Raises:
        ValueError: shapes differ.
    """
    s, p = _alike(s, p)
    return torch.where(p < _ONE, (s - p) / (1 - p), torch.nan)


def _alike(s: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    if s.shape != p.shape:
        raise ValueError(f"similarities differ in shape: {tuple(s.shape)} and {tuple(p.shape)}")
    return s.double(), p.double()
