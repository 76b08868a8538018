"""The Gaussian mechanism, calibrated exactly: how much noise buys which (epsilon, delta).

All functions speak of one release of a statistic to which one patient contributes at most
``sensitivity`` in L2 norm, with noise of standard deviation ``sigma`` on each coordinate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from scipy.special import log_ndtr

_BISECTIONS = 200


def gaussian_delta(sigma: float, epsilon: float, sensitivity: float = 1.0) -> float:
    """Return the least ``delta`` that a release has at ``epsilon``.

    ``Phi(s/2 - epsilon/s) - exp(epsilon) Phi(-s/2 - epsilon/s)`` with ``s = sensitivity / sigma``
    (Balle and Wang 2018, arXiv 1805.06530, theorem 8). It is exact: no smaller one holds.

    Args:
        sigma: of the noise, positive.
        epsilon: not negative.
        sensitivity: in L2 norm, positive.

    Returns:
        In [0, 1].

    Raises:
        ValueError: with the offending value.
    """
    _check("sigma", sigma)
    _check("sensitivity", sensitivity)
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon must be finite and not negative, got {epsilon}")
    s = sensitivity / sigma
    log_first = float(log_ndtr(s / 2 - epsilon / s))
    log_second = epsilon + float(log_ndtr(-s / 2 - epsilon / s))
    # The difference of two numbers that are nearly equal, by their ratio.
    return math.exp(log_first) * -math.expm1(min(log_second - log_first, 0.0))


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float = 1.0) -> float:
    """Return the least standard deviation of the noise that gives ``(epsilon, delta)``.

    Args:
        epsilon: positive.
        delta: in (0, 1).
        sensitivity: in L2 norm, positive.

    Returns:
        Positive, rounded up.

    Raises:
        ValueError: with the offending value.
    """
    _check("epsilon", epsilon)
    _check("sensitivity", sensitivity)
    _check_delta(delta)
    return _least(lambda sigma: gaussian_delta(sigma, epsilon, sensitivity) <= delta, sensitivity)


def gaussian_epsilon(sigma: float, delta: float, sensitivity: float = 1.0) -> float:
    """Return the least ``epsilon`` that a release has at ``delta``.

    Args:
        sigma: of the noise, positive.
        delta: in (0, 1).
        sensitivity: in L2 norm, positive.

    Returns:
        Not negative, rounded up; 0 where the noise hides even the two extremes.

    Raises:
        ValueError: with the offending value.
    """
    _check_delta(delta)
    if gaussian_delta(sigma, 0.0, sensitivity) <= delta:
        return 0.0
    return _least(lambda epsilon: gaussian_delta(sigma, epsilon, sensitivity) <= delta, 1.0)


def compose_sigma(sigmas: Iterable[float]) -> float:
    """Return the noise of the one release that tells as much as several together.

    Gaussian releases of the same patients, each by ``sigma`` in units of its own sensitivity,
    compose exactly: ``1/sigma^2`` adds up, also where a later one depends on the earlier (Dong,
    Roth and Su 2022, corollary 3.3). So one certificate covers them all, and a smaller one than the
    sum of their epsilons.

    Args:
        sigmas: noise over sensitivity of each release, at least one, positive.

    Returns:
        Noise over sensitivity of them all.

    Raises:
        ValueError: none, or one that is not positive.
    """
    noises = list(sigmas)
    if not noises:
        raise ValueError("there is no release to compose")
    for sigma in noises:
        _check("sigma", sigma)
    return 1 / math.sqrt(math.fsum(sigma**-2 for sigma in noises))


def limit_patients(patients: Sequence[str], images_per_patient: int) -> list[int]:
    """Choose at most so many images of each patient, so that a sensitivity per image bounds one.

    Each patient's first images are taken. The choice depends on no other patient: one drawn at
    random for all would change with each patient that comes or goes, and the sensitivity with it.

    Args:
        patients: one id an image.
        images_per_patient: at least 1.

    Returns:
        Ascending positions of the chosen images.

    Raises:
        ValueError: ``images_per_patient`` is less than 1.
    """
    if images_per_patient < 1:
        raise ValueError(f"images_per_patient must be at least 1, got {images_per_patient}")
    taken: Counter[str] = Counter()
    chosen = []
    for position, patient in enumerate(patients):
        if taken[patient] < images_per_patient:
            taken[patient] += 1
            chosen.append(position)
    return chosen


def _least(enough: Callable[[float], bool], start: float) -> float:
    """Return the least positive number that is enough, from above, where all greater ones are."""
    high = start
    while not enough(high):
        high *= 2
    low = high / 2
    while enough(low):
        low, high = low / 2, low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _check(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and positive, got {value}")


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}")
