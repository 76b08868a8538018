"""Which reconstruction belongs to which picture: an update does not say."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gradward.metrics.similarity import ssim_matrix


def match(reconstructions: Tensor, truths: Tensor) -> tuple[Tensor, Tensor]:
    """Pair reconstructions and truths one to one, so that the sum of their SSIMs is greatest.

    The pairing knows the truth and so favours the attacker; prior and control are judged with the
    same favour.

    Args:
        reconstructions: ``(n, C, H, W)`` in [0, 1].
        truths: ``(m, C, H, W)`` in [0, 1]; ``n`` and ``m`` may differ.

    Returns:
        Rows into ``reconstructions``, ascending, and columns into ``truths``, both
        ``(min(n, m),)`` int64 on the CPU.

    Raises:
        ValueError: as :func:`gradward.metrics.similarity.ssim`.
    """
    return assign(ssim_matrix(reconstructions, truths))


def assign(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Assignment of rows to columns of ``(n, m)`` similarities with the greatest sum."""
    rows, columns = linear_sum_assignment(similarity.detach().cpu().numpy(), maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(columns)
