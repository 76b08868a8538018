"""The certified mode: a labelling of public pictures, learned from a site under one budget.

A site passes one statistic of its patients through the Gaussian mechanism, once (see
:mod:`gradward.defenses.class_statistics`). It corrects a classifier that was fitted on public
images, and the corrected one labels fresh pictures made of public images. The site trains on those.
So every draw, epoch, round and job on one release is post-processing of it, and one (epsilon,
delta) for each patient covers them all, membership included. No pixel of a site is in a draw.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from gradward.data.images import DataError, ImageSet, require_same_form
from gradward.defenses.autoencoder import Progress, no_progress
from gradward.defenses.class_draws import Certificate, ClassRelease, ReleaseSettings
from gradward.defenses.class_features import PublicFeatures, fit_features
from gradward.defenses.class_pictures import moved_at_random
from gradward.defenses.class_statistics import (
    PublicClassifier,
    corrected,
    fit_public,
    noised,
    patient_sum,
)
from gradward.defenses.noise import FrozenNoise


@dataclass(frozen=True)
class SiteSummary:
    """All that a release takes of a site, without noise: it never leaves the site.

    Attributes:
        total: sum of the patients' records, see :func:`~.class_statistics.patient_sum`.
        classifier: which it corrects.
        features: of the classifier.
        public: images that are drawn from.
        settings: of the release.
    """

    total: Tensor
    classifier: PublicClassifier
    features: PublicFeatures
    public: ImageSet
    settings: ReleaseSettings

    def release(self, epsilon: float, delta: float, noise: FrozenNoise) -> ClassRelease:
        """Pass the sum through the Gaussian mechanism; every call is a release to pay for.

        Raises:
            ValueError: epsilon or delta is out of range.
        """
        weights, clip = self.classifier.weights, self.settings.clip
        statistics = noised(
            self.total,
            weights.shape[1],
            epsilon=epsilon,
            delta=delta,
            clip=clip,
            noise=noise,
            context=hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
        )
        return ClassRelease(
            Certificate(epsilon, delta, clip, statistics.sigma),
            self.settings,
            self.features,
            corrected(self.classifier, statistics),
            self.public,
        )


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
    return summarise(
        site_images,
        public,
        num_classes=num_classes,
        generator=generator,
        settings=settings,
        features=features,
        progress=progress,
    ).release(epsilon, delta, noise)


def summarise(
    site_images: ImageSet,
    public: ImageSet,
    *,
    num_classes: int,
    generator: torch.Generator,
    settings: ReleaseSettings | None = None,
    features: PublicFeatures | None = None,
    progress: Progress = no_progress,
) -> SiteSummary:
    """Do the part of :func:`release` that comes before the noise; arguments and errors are its."""
    settings = settings or ReleaseSettings()
    _check_data(site_images, public, num_classes)
    if features is None:
        features = fit_features(
            public, num_classes, settings.features, settings.movement, generator, progress
        )
    classifier = public_classifier(public, features, num_classes, settings, generator)
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
    progress("statistics", 1.0)
    return SiteSummary(total, classifier, features, public, settings)


def public_classifier(
    public: ImageSet,
    features: PublicFeatures,
    num_classes: int,
    settings: ReleaseSettings,
    generator: torch.Generator,
) -> PublicClassifier:
    """Fit what a site's statistics correct, on public images and moved copies of them.

    Args:
        public: labelled public images.
        features: of images.
        num_classes: of the task, K.
        settings: of the release.
        generator: moves the copies.
    """
    copies = max(1, settings.features.augmentations // len(public))
    many = [moved_at_random(public.images, settings.movement, generator) for _ in range(copies)]
    return fit_public(
        features(torch.cat([public.images, *many])),
        public.labels.repeat(copies + 1),
        num_classes,
        settings.ridge,
    )


def _check_data(site_images: ImageSet, public: ImageSet, num_classes: int) -> None:
    for name, part in (("site", site_images), ("public", public)):
        if not len(part):
            raise DataError(f"there are no {name} images; a release needs some of each")
        if not (part.labels.min() >= 0 and part.labels.max() < num_classes):
            raise DataError(f"a label of the {name} images is not in [0, {num_classes})")
    require_same_form(site_images, public)
