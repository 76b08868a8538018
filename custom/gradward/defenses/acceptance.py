"""The gate that a fitted perturber must pass: a fresh attacker who knows it, and linkage."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gradward.data.images import DataError, ImageSet
from gradward.defenses.adversary import OracleSettings, fit_oracle
from gradward.defenses.channel import GatedChannel
from gradward.metrics.linkage import likelihood_linkage, same_class_gallery
from gradward.metrics.proportion import wilson_interval

GALLERY = 100
_SMALLEST_GALLERY = 10
_MOST_VICTIMS = 150
_TRIALS = 300


class PerturbationRefused(RuntimeError):
    """What the perturber hides is not enough; no view of any image was handed out."""


@dataclass(frozen=True)
class Limits:
    """What a site demands of a perturber.

    Attributes:
        max_linkage: the greatest upper bound of the linkage, in [0, 1].
        min_mse: the least error of the attacker over that of guessing the class mean, in [0, 1].
    """

    max_linkage: float = 0.35
    min_mse: float = 0.9


@dataclass(frozen=True)
class Acceptance:
    """What the attacker got.

    Attributes:
        linkage: fraction of views that the attacker assigns to the right one of ``gallery``
            candidates.
        linkage_bound: one-sided upper 95 % bound of it (Wilson).
        gallery: candidates of each view, of one class; chance is one in so many.
        relative_mse: the attacker's mean squared error over that of guessing the class mean, at
            most 1.
        method: of the best reconstruction.
        victims: images attacked.
        accepted: whether both limits are kept.
    """

    linkage: float
    linkage_bound: float
    gallery: int
    relative_mse: float
    method: str
    victims: int
    accepted: bool

    def figures(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return asdict(self)

    def require(self, limits: Limits) -> None:
        """Raise unless accepted.

        Raises:
            PerturbationRefused: with the figures and the remedy.
        """
        if not self.accepted:
            raise PerturbationRefused(
                f"the perturber was refused: linkage {self.linkage:.2f} (at most "
                f"{self.linkage_bound:.2f} with 95 % confidence, allowed {limits.max_linkage:.2f}, "
                f"chance {1 / self.gallery:.2f}), reconstruction error "
                f"{self.relative_mse:.2f} of the class mean's (at least {limits.min_mse:.2f}); "
                "lower the rate, or use mode 'class'"
            )


def judge_channel(
    channel: GatedChannel,
    victims: ImageSet,
    others: ImageSet,
    attacker_images: ImageSet,
    *,
    num_classes: int,
    limits: Limits,
    generator: torch.Generator,
    oracle: OracleSettings | None = None,
) -> Acceptance:
    """Attack ``channel`` as its strongest known attacker would, and compare with the limits.

    The attacker holds channel, view and class. It rebuilds pictures by the best of the methods of
    :func:`gradward.defenses.adversary.fit_oracle`, trained here from nothing, and links views to
    candidates by likelihood.

    Args:
        channel: to be judged.
        victims: images whose views are attacked; at most 150 of them are taken.
        others: candidates for the galleries besides the victims; no picture of ``victims``.
        attacker_images: that the attacker learns from; none of the victims.
        num_classes: of the task.
        limits: to be kept.
        generator: apart from that of the fit.
        oracle: how long the attacker trains.

    Raises:
        DataError: fewer than 10 candidates of a victim's class.
    """
    order = torch.randperm(len(victims), generator=generator)[:_MOST_VICTIMS]
    attacked = victims.subset(order)
    w, _ = channel.whiten(attacked.images, attacked.labels)
    attack = fit_oracle(channel, attacker_images, num_classes, generator, oracle).attack(
        channel.release_fresh(w, generator), attacked
    )
    pool = joined(victims, others)
    size = min(GALLERY, _smallest_choice(pool, order))
    candidates, truth = same_class_gallery(pool, order, size, generator)
    gallery, _ = channel.whiten(pool.images, pool.labels)
    # Few victims are attacked several times, each time through other noise.
    repeats = math.ceil(_TRIALS / len(attacked))
    linked = torch.stack(
        [
            likelihood_linkage(
                channel.release_fresh(w, generator), gallery, channel.gate, truth, candidates
            )
            for _ in range(repeats)
        ]
    )
    linkage = float(linked.mean())
    # Attacks on one victim are not independent: the bound counts victims.
    _, bound = wilson_interval(linkage, len(attacked))
    return Acceptance(
        linkage=linkage,
        linkage_bound=bound,
        gallery=size,
        relative_mse=attack.relative_mse,
        method=attack.method,
        victims=len(attacked),
        accepted=bound <= limits.max_linkage and attack.relative_mse >= limits.min_mse,
    )


def joined(one: ImageSet, other: ImageSet) -> ImageSet:
    """Return both sets as one; where neither names patients, each image is a patient."""
    patients = None
    if one.patients is not None or other.patients is not None:
        patients = tuple(
            patient
            for source, images in (("one", one), ("other", other))
            for patient in images.patients or tuple(f"{source} {i}" for i in range(len(images)))
        )
    return ImageSet(
        torch.cat([one.images, other.images]), torch.cat([one.labels, other.labels]), patients
    )


def _smallest_choice(pool: ImageSet, victims: torch.Tensor) -> int:
    """Candidates that every victim has, itself included."""
    patients = pool.patients or tuple(str(index) for index in range(len(pool)))
    of_class = torch.bincount(pool.labels)
    own: Counter[tuple[str, int]] = Counter(zip(patients, pool.labels.tolist(), strict=True))
    choice = min(
        int(of_class[pool.labels[v]]) - own[patients[v], int(pool.labels[v])] + 1
        for v in victims.tolist()
    )
    if choice < _SMALLEST_GALLERY:
        raise DataError(
            f"judging a perturber needs at least {_SMALLEST_GALLERY} candidates of each class from "
            "different patients; declare more public images"
        )
    return choice
