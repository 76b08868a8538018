"""Bounds and interpolation: figures as a sceptic would take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.stats import norm, t

from gradward.metrics import wilson_interval

from .scoring import Evidence

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate between two-sided bounds."""

    value: float
    low: float
    high: float

    @property
    def at_least(self) -> str:
        """The estimate with its lower bound, as tables and verdicts print it."""
        return f"{self.value:.3f} (≥ {self.low:.3f})"

    @property
    def at_most(self) -> str:
        """The estimate with its upper bound."""
        return f"{self.value:.3f} (≤ {self.high:.3f})"


def proportion(hits: float, trials: float) -> Interval:
    """Return Wilson's score interval of a proportion; ``hits`` may be a sum of probabilities.

    Each bound holds by itself with 95 % (one-sided), as the bars of the study ask.
    """
    # A sum of probabilities that were rounded may pass the trials by a hair.
    share = min(hits / trials, 1.0)
    return Interval(share, *wilson_interval(share, trials, CONFIDENCE))


def relative_error(evidence: Evidence) -> Interval:
    """Return the attacker's MSE relative to the class-mean prior's, clipped at 1.

    A ratio of means over the victims, with one-sided 95 % bounds from its linearisation. Above 1
    an attacker would rather guess the class mean, so the value and its bounds are cut there.
    """
    n, e = evidence.victims, evidence
    ratio = e.mse / e.prior
    squares = e.mse_mse - 2 * ratio * e.mse_prior + ratio**2 * e.prior_prior
    half = norm.ppf(CONFIDENCE) * math.sqrt(max(squares, 0.0) / max(n - 1, 1) / n) / (e.prior / n)
    return Interval(*(min(1.0, value) for value in (ratio, max(0.0, ratio - half), ratio + half)))


def mean(values: Sequence[float]) -> Interval:
    """Return a mean with bounds by Student's t, each of which holds by itself with 95 %.

    For paired comparisons pass the differences. A single value has an infinite interval.
    """
    n = len(values)
    centre = sum(values) / n
    if n == 1:
        return Interval(centre, -math.inf, math.inf)
    deviation = math.sqrt(sum((value - centre) ** 2 for value in values) / (n - 1))
    half = float(t.ppf(CONFIDENCE, n - 1)) * deviation / math.sqrt(n)
    return Interval(centre, centre - half, centre + half)


def best_at_utility(curve: Sequence[tuple[float, float]], least: float) -> float | None:
    """Return the highest figure that an arm reaches at a utility of at least ``least``.

    Between neighbouring settings the arm is taken to be able to reach what lies on the straight
    line between them.

    Args:
        curve: (utility, figure) for each setting, in the order of the setting; high figures are
            good for the defence.
        least: utility that must be kept.

    Returns:
        None where no setting keeps it.
    """
    reached = [figure for utility, figure in curve if utility >= least]
    for (u, f), (v, g) in pairwise(curve):
        if (u - least) * (v - least) < 0:
            reached.append(f + (least - u) / (v - u) * (g - f))
    return max(reached, default=None)
