"""How well a contender did, by GradWard's metrics."""

from __future__ import annotations

from torch import Tensor

from gradward.metrics.matching import match
from gradward.metrics.recovery import recovered_fraction
from gradward.metrics.similarity import psnr, ssim


def score(images: Tensor, truth: Tensor, prior: Tensor) -> dict[str, float]:
    """Return the means over the pictures, each matched to the reconstruction most like it.

    Args:
        images: ``(n, C, H, W)``; clipped to [0, 1].
        truth: ``(n, C, H, W)`` in [0, 1].
        prior: ``(C, H, W)``, the public mean image, which is the best guess without the update.

    Returns:
        ``psnr`` in dB, ``ssim``, ``recovered`` fraction and the ``prior_ssim``.
    """
    guesses = images.float().clamp(0, 1)
    rows, columns = match(guesses, truth)
    found, wanted = guesses[rows], truth[columns]
    s, p = ssim(found, wanted), ssim(prior.expand_as(wanted), wanted)
    values = {
        "psnr": psnr(found, wanted),
        "ssim": s,
        "recovered": recovered_fraction(s, p),
        "prior_ssim": p,
    }
    return {name: round(float(value.mean()), 5) for name, value in values.items()}
