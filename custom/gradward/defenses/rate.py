"""How many nats about its image a gated view can tell, and what an attacker can make of them.

A gated view is ``w' = a * w + sqrt(1 - a^2) * eps``: ``w`` the whitened latent of an image,
``a`` the gates, one a dimension, ``eps`` standard normal. Everything here holds for one view whose
gates were chosen independently of the image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# float32 knows a sum of squares to about 1e-6; the certificate must not fail by a rounding.
_ROUNDING = 1e-6
_BISECTIONS = 100


def gate_rate(a: Tensor) -> Tensor:
    """Rate of the gates ``a``, the sum of ``-1/2 log(1 - a^2)``.

    It is the mutual information of a standard normal ``w`` with its view, the capacity of as many
    parallel Gaussian channels (Cover and Thomas 2006, section 9.4), and after
    :func:`clip_whitened` it bounds what a view tells about any image.

    Args:
        a: ``(r,)`` floating point in [0, 1).

    Returns:
        Scalar in nats, not negative; differentiable.

    Raises:
        ValueError: ``a`` is not a vector of gates.
    """
    _check_gates(a)
    return -0.5 * torch.log1p(-a.square()).sum()


def image_kl(a: Tensor, w: Tensor) -> Tensor:
    """Divergence of each image's view from a standard normal, which tells nothing.

    ``KL(N(a w, 1 - a^2) || N(0, I)) = 1/2 sum [a^2 (w^2 - 1) - log(1 - a^2)]``. Its mean over
    images bounds the mutual information of image and view, whatever the images' distribution.

    Args:
        a: ``(r,)`` floating point in [0, 1).
        w: ``(N, r)`` whitened latents.

    Returns:
        ``(N,)`` in nats, not negative.

    Raises:
        ValueError: shapes do not fit, or ``a`` is not a vector of gates.
    """
    _check_pair(a, w)
    return gate_rate(a) + 0.5 * (a.square() * (w.square() - 1)).sum(1)


def clip_whitened(w: Tensor, a: Tensor) -> tuple[Tensor, float]:
    """Shorten ``w`` image by image so that :func:`image_kl` is at most :func:`gate_rate`.

    An image with ``sum a^2 w^2 > sum a^2`` is scaled down to equality; the others stay as they are.

    Args:
        w: ``(N, r)`` whitened latents.
        a: ``(r,)`` floating point in [0, 1).

    Returns:
        The clipped latents ``(N, r)``, differentiable in both arguments, and the fraction of the
        images that were clipped, in [0, 1] (0 without images).

    Raises:
        ValueError: shapes do not fit, ``a`` is not a vector of gates, or ``w`` is not finite, which
            no scale could repair.
    """
    _check_pair(a, w)
    if not torch.isfinite(w).all():
        raise ValueError("whitened latents must be finite")
    squares = a.square()
    energy = (squares * w.square()).sum(1)
    budget = squares.sum() * (1 - _ROUNDING)
    beyond = energy > budget
    # The inner `where` keeps the branch that is not taken from a division by 0 in the gradient.
    scale = torch.where(beyond, budget / torch.where(beyond, energy, 1.0), 1.0).sqrt()
    return w * scale[:, None], float(beyond.double().mean()) if len(w) else 0.0


def uniform_gate(rate: float, dimensions: int) -> float:
    """Return the gate in [0, 1) that, alike in all ``dimensions``, has the given ``rate`` in nats.

    Raises:
        ValueError: a rate that is negative or not finite, no dimensions, or so many nats that the
            gate rounds to 1.
    """
    _check_rate(rate)
    if dimensions < 1:
        raise ValueError(f"dimensions must be at least 1, got {dimensions}")
    gate = math.sqrt(-math.expm1(-2 * rate / dimensions))
    if gate >= 1:
        raise ValueError(f"{rate} nats in {dimensions} dimensions leave no noise at all")
    return gate


def degrade_gate(a: Tensor, c: float) -> Tensor:
    """Gates of the degraded view ``w'' = c w' + sqrt(1 - c^2) eps''``, which are ``c a``.

    ``w''`` is made from ``w'`` alone, so both together tell no more than ``w'`` did.

    Args:
        a: ``(r,)`` gates of the stored view.
        c: how much of it stays, in [0, 1].

    Returns:
        ``(r,)`` in [0, 1).

    Raises:
        ValueError: ``c`` leaves [0, 1], or ``a`` is not a vector of gates.
    """
    _check_gates(a)
    if not 0 <= c <= 1:
        raise ValueError(f"c must lie in [0, 1], got {c}")
    return c * a


def identification_bound(rate: float, candidates: int) -> float:
    """Greatest probability with which any attacker names the image among its candidates.

    The greatest ``p`` with ``p log(p N) + (1 - p) log((1 - p) / (1 - 1/N)) <= rate``: guessing from
    the view and guessing from pure noise (success ``1/N``) cannot differ by more than the rate, by
    the data processing inequality. Sharper than Fano's, which says nothing at rate 0.

    Args:
        rate: in nats, of all views of the image together.
        candidates: ``N``, equally probable before the view.

    Returns:
        In ``[1/N, 1]``, rounded up: ``1/N`` at rate 0 and 1 from ``log N`` on.

    Raises:
        ValueError: a rate that is negative or not finite, or no candidate.
    """
    _check_rate(rate)
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, got {candidates}")
    if rate == 0 or rate >= math.log(candidates):
        return 1.0 if rate else 1 / candidates
    low, high = 1 / candidates, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _advantage(middle, candidates) <= rate:
            low = middle
        else:
            high = middle
    return high


def _advantage(p: float, candidates: int) -> float:
    """Divergence in nats of success ``p`` from chance, for ``1/N <= p < 1``."""
    return p * math.log(p * candidates) + (1 - p) * math.log((1 - p) / (1 - 1 / candidates))


def _check_gates(a: Tensor) -> None:
    if a.ndim != 1 or not a.is_floating_point():
        raise ValueError(f"gates must be floating point (r,), got {a.dtype} {tuple(a.shape)}")
    # Written so that NaN, which compares as false, is refused as well.
    if a.numel() and not (a.min() >= 0 and a.max() < 1):
        raise ValueError("gates must lie in [0, 1)")


def _check_pair(a: Tensor, w: Tensor) -> None:
    _check_gates(a)
    if w.ndim != 2 or w.shape[1] != len(a):
        raise ValueError(f"latents {tuple(w.shape)} do not fit {len(a)} gates")


def _check_rate(rate: float) -> None:
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"rate must be finite and not negative, got {rate}")
