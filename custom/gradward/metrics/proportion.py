"""How sure a share of trials is."""

from __future__ import annotations

import math

from scipy.stats import norm


def wilson_interval(
    fraction: float, trials: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Confidence bounds of a probability, by the score interval of Wilson (1927).

    Args:
        fraction: of the trials that succeeded, in [0, 1]; the successes may be a sum of
            probabilities.
        trials: above 0, independent of each other.
        confidence: with which each bound holds by itself (one-sided), in (0.5, 1).

    Returns:
        The lower and the upper bound, in [0, 1].

    Raises:
        ValueError: an argument leaves its range.
    """
    if not 0 <= fraction <= 1 or not trials > 0 or not 0.5 < confidence < 1:
        raise ValueError(
            "a fraction in [0, 1], trials above 0 and a confidence in (0.5, 1) are needed, got "
            f"{fraction!r}, {trials!r} and {confidence!r}"
        )
    z = float(norm.ppf(confidence))
    square = z**2 / trials
    spread = z * math.sqrt(fraction * (1 - fraction) / trials + square / (4 * trials))
    low, high = ((fraction + square / 2 + side) / (1 + square) for side in (-spread, spread))
    return max(0.0, low), min(1.0, high)
