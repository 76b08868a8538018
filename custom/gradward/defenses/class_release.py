"""The certified mode: a labelling of public pictures, learned from a site under one budget.

A site passes one statistic of its patients through the Gaussian mechanism, once (see
:mod:`gradward.defenses.class_statistics`). It corrects a classifier that was fitted on public
images, and the corrected one labels fresh pictures made of public images. The site trains on those.
So every draw, epoch, round and job on one release is post-processing of it, and one (epsilon,
delta) for each patient covers them all, membership included. No pixel of a site is in a draw.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradward.data.images import DataError, ImageSet
from gradward.defenses.autoencoder import Progress, no_progress
from gradward.defenses.class_features import FeatureSettings, PublicFeatures, fit_features
from gradward.defenses.class_pictures import Movement, mixed, moved_at_random
from gradward.defenses.class_statistics import corrected, fit_public, noised, patient_sum
from gradward.defenses.noise import FrozenNoise


@dataclass(frozen=True)
class ReleaseSettings:
    """How a class release is made.

    Attributes:
        clip: L2 norm of a patient's record at most; that of one image is seldom above 0.7.
        copies: moved copies of each image, which share its record.
        ridge: of the public classifier.
        mixing: share of draws that blend two pictures.
        sharpness: factor between scores and logits of the labels that draws get.
        movement: of copies and draws.
        features: of the public features.

    Raises:
        ValueError: with the offending value.
    """

    clip: float = 0.5
    copies: int = 6
    ridge: float = 1e-3
    mixing: float = 0.5
    sharpness: float = 8.0
    movement: Movement = field(default_factory=Movement)
    features: FeatureSettings = field(default_factory=FeatureSettings)

    def __post_init__(self) -> None:
        """Check the numbers that the certificate and the labels hang on."""
        for name in ("clip", "ridge", "sharpness"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and positive, got {getattr(self, name)}")
        if self.copies < 0:
            raise ValueError(f"copies must not be negative, got {self.copies}")
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"mixing must lie in [0, 1], got {self.mixing}")


@dataclass(frozen=True)
class Certificate:
    """What one release may cost a patient, who is added to or removed from the site.

    Attributes:
        epsilon: of (epsilon, delta)-differential privacy.
        delta: likewise.
        sensitivity: the most a patient's record can change the sum, in L2 norm.
        sigma: standard deviation of the noise on each coordinate of the sum.
    """

    epsilon: float
    delta: float
    sensitivity: float
    sigma: float


class ClassRelease:
    """Draws labelled pictures from what a site released; build it with :func:`release`.

    Attributes:
        certificate: of the release, and of everything that is made of it.
        release_id: name of the released content, 64 hexadecimal digits; of noised values only.
    """

    def __init__(
        self,
        certificate: Certificate,
        settings: ReleaseSettings,
        features: PublicFeatures,
        weights: Tensor,
        public: ImageSet,
    ) -> None:
        """Args: ``weights`` ``(D, K)`` from features to scores; ``public`` is drawn from."""
        self.certificate, self.settings = certificate, settings
        self._features, self._weights, self._public = features, weights, public
        counts = torch.bincount(public.labels, minlength=weights.shape[1])
        # Every class as often as any other; a class without public pictures is never drawn.
        self._chances = 1 / counts[public.labels].float()
        self.release_id = _digest(certificate, weights)

    @property
    def epsilon(self) -> float:
        """Of the certificate."""
        return self.certificate.epsilon

    @property
    def delta(self) -> float:
        """Of the certificate."""
        return self.certificate.delta

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise."""
        return self.certificate.sigma

    @property
    def sensitivity(self) -> float:
        """The most that one patient can change the noised sum, in L2 norm."""
        return self.certificate.sensitivity

    def scores(self, images: Tensor) -> Tensor:
        """Return class probabilities ``(N, K)`` of ``images`` ``(N, C, H, W)``."""
        probabilities: Tensor = (
            self.settings.sharpness * self._features(images) @ self._weights
        ).softmax(1)
        return probabilities

    def draw(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw as many labelled pictures as there are ``labels``.

        The labels themselves are a site's data, which nothing released covers: only their number is
        looked at. The pictures are public, moved and mixed; their labels are the release's.

        Args:
            labels: ``(N,)``.
            generator: CPU generator.

        Returns:
            Images ``(N, C, H, W)`` in [0, 1] and class probabilities ``(N, K)``, as
            ``torch.nn.functional.cross_entropy`` takes them.
        """
        chosen = torch.multinomial(
            self._chances, len(labels), replacement=True, generator=generator
        )
        pictures = moved_at_random(self._public.images[chosen], self.settings.movement, generator)
        pictures = mixed(pictures, self.settings.mixing, generator)
        return pictures, self.scores(pictures)

    def to_state(self) -> dict[str, Any]:
        """Return tensors and plain values, which ``torch.load(weights_only=True)`` can read."""
        return {
            "certificate": asdict(self.certificate),
            "settings": asdict(self.settings),
            "features": self._features.to_state(),
            "weights": self._weights,
            "public": {"images": self._public.images, "labels": self._public.labels},
            "release_id": self.release_id,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ClassRelease:
        """Build what :meth:`to_state` described.

        Raises:
            KeyError, RuntimeError, TypeError: it is no such state.
            ValueError: likewise, or its certificate is not the one that it was released under.
        """
        settings = dict(state["settings"])
        settings["movement"] = Movement(**settings["movement"])
        settings["features"] = FeatureSettings(**settings["features"])
        found = cls(
            Certificate(**state["certificate"]),
            ReleaseSettings(**settings),
            PublicFeatures.from_state(state["features"]),
            state["weights"],
            ImageSet(state["public"]["images"], state["public"]["labels"]),
        )
        if found.release_id != state["release_id"]:
            raise ValueError("the release is not the one that was stored")
        return found


def release(
    site_images: ImageSet,
    public: ImageSet,
    *,
    num_classes: int,
    epsilon: float,
    delta: float,
    generator: torch.Generator,
    noise: FrozenNoise,
    settings: ReleaseSettings | None = None,
    features: PublicFeatures | None = None,
    progress: Progress = no_progress,
) -> ClassRelease:
    """Release a site's class statistics once, by the Gaussian mechanism.

    Enter it in the site's ledger before anything is drawn from it. A second release, of other
    images or settings or from another generator, is a second one to pay for.

    Args:
        site_images: the site's training images; a patient's images make one record together. Where
            no patients are given, each image is one.
        public: declared public images of the same task and shape, none of them the site's.
        num_classes: of the task, K.
        epsilon: per patient, for everything that is made of the release.
        delta: likewise.
        generator: public features and the movement of the copies; never the noise.
        noise: keyed by the site's secret.
        settings: of the release.
        features: fitted before, on public images alone; None fits them here.
        progress: told the part's name and the share done.

    Raises:
        DataError: no images, shapes differ, or a label is no class.
        ValueError: epsilon or delta is out of range.
    """
    settings = settings or ReleaseSettings()
    _check_data(site_images, public, num_classes)
    if features is None:
        features = fit_features(
            public, num_classes, settings.features, settings.movement, generator, progress
        )
    copies = max(1, settings.features.augmentations // len(public))
    many = [moved_at_random(public.images, settings.movement, generator) for _ in range(copies)]
    classifier = fit_public(
        features(torch.cat([public.images, *many])),
        public.labels.repeat(copies + 1),
        num_classes,
        settings.ridge,
    )
    progress("statistics", 0.0)
    total = patient_sum(
        site_images,
        features,
        classifier,
        movement=settings.movement,
        copies=settings.copies,
        clip=settings.clip,
        generator=generator,
    )
    statistics = noised(
        total,
        num_classes,
        epsilon=epsilon,
        delta=delta,
        clip=settings.clip,
        noise=noise,
        context=hashlib.sha256(classifier.weights.numpy().tobytes()).hexdigest(),
    )
    progress("statistics", 1.0)
    certificate = Certificate(epsilon, delta, settings.clip, statistics.sigma)
    return ClassRelease(certificate, settings, features, corrected(classifier, statistics), public)


def _check_data(site_images: ImageSet, public: ImageSet, num_classes: int) -> None:
    for name, part in (("site", site_images), ("public", public)):
        if not len(part):
            raise DataError(f"there are no {name} images")
        if not (part.labels.min() >= 0 and part.labels.max() < num_classes):
            raise DataError(f"a label of the {name} images is not in [0, {num_classes})")
    if public.images.shape[1:] != site_images.images.shape[1:]:
        raise DataError(
            f"public images of shape {tuple(public.images.shape[1:])} do not fit site images of "
            f"shape {tuple(site_images.images.shape[1:])}"
        )


def _digest(certificate: Certificate, weights: Tensor) -> str:
    digest = hashlib.sha256(repr(sorted(asdict(certificate).items())).encode())
    digest.update(weights.contiguous().numpy().tobytes())
    return digest.hexdigest()
