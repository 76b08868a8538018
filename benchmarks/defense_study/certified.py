"""The certified arms, each with the settings that suit it best, and what they are measured against.

The two private arms get the same epsilon a patient, delta and start. Training on draws costs no
privacy however long it lasts, so it may last longer than a pass over the site's images; training on
the public images alone lasts as long, at the same rate and with the same movements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradward.data import ImageSet
from gradward.defenses.class_draws import Certificate, ClassRelease, ReleaseSettings
from gradward.defenses.class_features import PublicFeatures, fit_features
from gradward.defenses.class_pictures import moved_at_random
from gradward.defenses.class_release import SiteSummary, public_classifier, summarise
from gradward.defenses.class_statistics import PublicClassifier
from gradward.defenses.noise import FrozenNoise
from gradward.defenses.storage import load_private, save_private
from gradward.defenses.views import ClassDraws
from gradward.training import Batch, TrainingSettings

from .baselines import DELTA, dp_sgd
from .defence import Case, Defence
from .federation import FULL, site_settings
from .membership import Shadow

# GroupNorm needs this long to be as good a start as BatchNorm; draws hold nothing to be linked.
CERTIFIED_EFFORT = replace(FULL, start_epochs=90, victims=50, network_steps=100)
# Chosen at epsilon 8 on the first seeds of MNIST and PneumoniaMNIST, for each arm by itself.
_DRAWN: dict[str, Any] = {"lr": 0.05, "momentum": 0.5, "steps": 40}
_PRIVATE: dict[str, Any] = {"lr": 0.5, "momentum": 0.5, "batch_size": 100, "steps": 10}
_AUGMENTATIONS = 4
# Learning rate times the squared noise multiplier, at most.
_RATE_BY_NOISE = 0.8


@dataclass
class DrawnView:
    """Draws that stand for no image: all that can be held of one is that it was asked for.

    Attributes:
        drawn: the first site's release.
        generator: of the draws.
    """

    drawn: ClassRelease
    generator: torch.Generator

    def released(self, positions: Tensor) -> Tensor:
        """Return one draw for each position."""
        return self.drawn.draw(positions, self.generator)[0]

    def imitate(self, images: ImageSet, generator: torch.Generator) -> Tensor:
        """Return one draw for each image."""
        return self.drawn.draw(images.labels, generator)[0]


@dataclass
class MovedImages:
    """Public images with their own labels, moved as draws are.

    Attributes:
        images: which.
        length: of the source; batches take images at random whatever they are asked for.
        generator: CPU generator.
    """

    images: ImageSet
    length: int
    generator: torch.Generator

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return as many images, moved."""
        chosen = torch.randint(len(self.images), (len(indices),), generator=self.generator)
        limits = ReleaseSettings().movement
        moved = moved_at_random(self.images.images[chosen], limits, self.generator)
        return Batch(moved, self.images.labels[chosen])


def dp_class(case: Case) -> Defence:
    """Release every site's class statistics once, at this epsilon; delta is that of DP-SGD."""
    trial = case.trial
    releases = []
    for site, images in enumerate(trial.sites):
        summary = _summary(case, images, "site", site, kept=True)
        releases.append(_released(case, summary, "site", site))
    certificate = releases[0].certificate
    facts = {"epsilon": certificate.epsilon, "delta": certificate.delta}
    view = DrawnView(releases[0], trial.generator("released"))
    return Defence(_longer(case), _draws(case, releases), view=view, facts=facts)


def public_draws(case: Case) -> Defence:
    """Train on draws that the public classifier labels: what `dp_class` is without any site."""
    trial, settings = case.trial, ReleaseSettings()
    features = _features(case)
    generator = trial.generator("public classifier")
    classifier = public_classifier(trial.public, features, trial.num_classes, settings, generator)
    nothing = Certificate(0.0, 0.0, settings.clip, math.inf)
    drawn = ClassRelease(nothing, settings, features, classifier.weights, trial.public)
    return Defence(_longer(case), _draws(case, [drawn] * len(trial.sites)))


def public_only(case: Case) -> Defence:
    """Train on the public images with the effort that is spent on draws."""
    trial = case.trial
    sources = [
        MovedImages(trial.public, len(images), trial.generator("moved", site))
        for site, images in enumerate(trial.sites)
    ]
    return Defence(_longer(case), sources)


def tuned_dp_sgd(case: Case) -> Defence:
    """DP-SGD with the settings that suit it at this epsilon.

    Batches are larger and passes more than on the frontier, and the rate falls with the noise's
    variance: what suits epsilon 8 throws the model far below its start at epsilon 1. Public steps
    on the averaged model, which would cost nothing, made it worse at the draws' rate.
    """
    noise = dp_sgd(case, **_PRIVATE).facts["noise_multiplier"]
    rate = min(_PRIVATE["lr"], _RATE_BY_NOISE / noise**2)
    return dp_sgd(case, _AUGMENTATIONS, **_PRIVATE | {"lr": rate})


def refit_release(case: Case, images: ImageSet, number: int) -> Shadow:
    """Release other images at the same epsilon."""
    drawn = _released(case, _summary(case, images, "shadow", number), "shadow", number)

    def likelihood(pictures: Tensor, labels: Tensor) -> Tensor:
        chosen: Tensor = drawn.scores(pictures).gather(1, labels[:, None])[:, 0]
        return chosen.clamp_min(1e-12).log()

    generator = case.trial.generator("shadow draw", number)
    return Shadow(ClassDraws(drawn, images.labels, generator), likelihood)


def _longer(case: Case) -> TrainingSettings:
    return replace(site_settings(case.trial), **_DRAWN)


def _draws(case: Case, releases: Sequence[ClassRelease]) -> list[ClassDraws]:
    return [
        ClassDraws(drawn, images.labels, case.trial.generator("draw", site))
        for site, (drawn, images) in enumerate(zip(releases, case.trial.sites, strict=True))
    ]


def _released(case: Case, summary: SiteSummary, *purpose: object) -> ClassRelease:
    generator = case.trial.generator(*purpose, "key")
    # A secret that a repeated study draws again; a site's own comes from the system.
    secret = torch.randint(256, (32,), dtype=torch.uint8, generator=generator)
    return summary.release(float(case.setting), DELTA, FrozenNoise(secret.numpy().tobytes()))


def _summary(case: Case, images: ImageSet, *purpose: object, kept: bool = False) -> SiteSummary:
    """Sum up a site; with ``kept`` once for all epsilons."""
    trial, features = case.trial, _features(case)
    file = case.scratch / f"summary {purpose}.pt"
    if file.exists():
        state = load_private(file)
        classifier = PublicClassifier(state["weights"], state["moment"])
        return SiteSummary(state["total"], classifier, features, trial.public, ReleaseSettings())
    found = summarise(
        images,
        trial.public,
        num_classes=trial.num_classes,
        generator=trial.generator(*purpose, "release"),
        features=features,
    )
    if kept:
        own = found.classifier
        state = {"total": found.total, "weights": own.weights, "moment": own.moment}
        save_private(file, state)
    return found


def _features(case: Case) -> PublicFeatures:
    """Fit the public features of a trial once."""
    file = case.scratch / "public features.pt"
    if not file.exists():
        settings = ReleaseSettings()
        trial = case.trial
        features = fit_features(
            trial.public,
            trial.num_classes,
            settings.features,
            settings.movement,
            trial.generator("public features"),
        )
        save_private(file, features.to_state())
    return PublicFeatures.from_state(load_private(file))
