"""What DP-SGD costs: epsilon over a whole job, and the noise that a given epsilon asks for.

What may be claimed: *for one image added or removed, all updates of the job together are
(epsilon, delta)-differentially private*. The number of images and the settings count as public. A
patient with k images is protected less: take one image a patient for a claim by patient. Any other
number that is computed from the images, such as a streamed loss, is not covered.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier

if TYPE_CHECKING:
    from gradward.training import TrainingSettings

# How much of the epsilon that was asked for the calibrated noise may leave unused.
EPSILON_TOLERANCE = 0.01


class EpsilonSpent(RuntimeError):
    """Another round would exceed the job's epsilon; the site does not train it."""


@dataclass(frozen=True)
class PrivateRound:
    """What one round of DP-SGD does to one site's images.

    Attributes:
        noise_multiplier: standard deviation of the noise over ``max_grad_norm``.
        sampling_rate: q, the probability of an image to be in a batch.
        steps: optimiser steps.
        expected_batch: mean number of images in a batch.
        max_grad_norm: L2 norm that each image's gradient is clipped to.
        augmentations: copies of each image whose mean gradient that is.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    expected_batch: float
    max_grad_norm: float
    augmentations: int = 1


@dataclass(frozen=True)
class PrivacyAccount:
    """What a site has spent in one job; a value to be stored between rounds.

    Attributes:
        delta: at which epsilon is stated.
        limit: the job's epsilon, or None.
        history: (noise multiplier, sampling rate, number of steps) of each round.
    """

    delta: float
    limit: float | None = None
    history: tuple[tuple[float, float, int], ...] = ()

    @classmethod
    def open(cls, settings: TrainingSettings) -> PrivacyAccount:
        """Return the empty account of a job that trains with ``settings.dp_sgd``."""
        if settings.dp_sgd is None:
            raise ValueError("these settings have no dp_sgd")
        return cls(settings.dp_sgd.delta, settings.dp_sgd.epsilon)

    @property
    def epsilon(self) -> float:
        """Epsilon of all rounds so far at ``delta``, by Renyi accounting (Mironov 2017)."""
        accountant = RDPAccountant()
        accountant.history = list(self.history)
        with _quiet("Optimal order"):  # of a bound that could be tighter still
            return float(accountant.get_epsilon(delta=self.delta)) if self.history else 0.0

    def spend(self, planned: PrivateRound) -> PrivacyAccount:
        """Return the account after a round; to be stored before the round is trained.

        A round that is repeated or broken off is paid for each time: its noise is another.

        Raises:
            EpsilonSpent: the job's epsilon would be exceeded.
        """
        entry = (planned.noise_multiplier, planned.sampling_rate, planned.steps)
        after = replace(self, history=(*self.history, entry))
        if self.limit is not None and after.epsilon > self.limit:
            raise EpsilonSpent(
                f"epsilon {self.epsilon:.2f} is spent; another round would exceed the job's "
                f"{self.limit}; nothing but another job with an epsilon of its own goes on"
            )
        return after

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "delta": self.delta,
            "limit": self.limit,
            "history": [list(entry) for entry in self.history],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrivacyAccount:
        """Read what :meth:`to_dict` returned.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        history = tuple((float(s), float(q), int(n)) for s, q, n in values["history"])
        limit = values["limit"]
        return cls(float(values["delta"]), None if limit is None else float(limit), history)


def plan_round(settings: TrainingSettings, n_images: int) -> PrivateRound:
    """Return what a round costs and does, with the noise that the job's epsilon asks for.

    Args:
        settings: with ``dp_sgd``.
        n_images: of the site.

    Raises:
        ValueError: no ``dp_sgd``, no images, a delta too large for them, or an epsilon too small.
    """
    private = settings.dp_sgd
    if private is None or n_images < 1:
        raise ValueError(f"DP-SGD needs its settings and images, got {private} and {n_images}")
    if private.delta >= 1 / n_images:
        raise ValueError(
            f"delta {private.delta} allows one of {n_images} images to be published whole; "
            f"use one below {1 / n_images:.1g}"
        )
    rate = min(1.0, settings.batch_size / n_images)
    steps = settings.number_of_steps(n_images)
    noise = private.noise_multiplier
    if private.epsilon is not None and private.rounds is not None:
        noise = _calibrate(private.epsilon, private.delta, rate, steps * private.rounds)
    assert noise is not None  # the settings hold one of the two
    return PrivateRound(
        noise_multiplier=noise,
        sampling_rate=rate,
        steps=steps,
        expected_batch=rate * n_images,
        max_grad_norm=private.max_grad_norm,
        augmentations=private.augmentations,
    )


@lru_cache
def _calibrate(epsilon: float, delta: float, rate: float, steps: int) -> float:
    with _quiet("Optimal order"):
        noise = get_noise_multiplier(
            target_epsilon=epsilon,
            target_delta=delta,
            sample_rate=rate,
            steps=steps,
            accountant=RDPAccountant.mechanism(),
            epsilon_tolerance=EPSILON_TOLERANCE * epsilon,
        )
    return float(noise)


@contextmanager
def _quiet(message: str) -> Iterator[None]:
    """Keep a warning of Opacus, which tells an operator nothing, out of a site's log."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=message)
        yield
