"""The certified mode: draws from a release that is differentially private for each patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradward.data import ImageSet
from gradward.defenses.class_features import PublicFeatures, fit_features
from gradward.defenses.class_release import ClassRelease, ReleaseSettings, release
from gradward.defenses.noise import FrozenNoise
from gradward.defenses.storage import load_private, save_private
from gradward.defenses.views import ClassDraws

from .baselines import DELTA
from .defence import Case, Defence
from .federation import site_settings
from .membership import Shadow


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


def dp_class(case: Case) -> Defence:
    """Release every site's class statistics once, at this epsilon; delta is that of DP-SGD."""
    trial = case.trial
    releases = [_release(case, images, ("site", n)) for n, images in enumerate(trial.sites)]
    sources = [
        ClassDraws(drawn, images.labels, trial.generator("draw", site))
        for site, (drawn, images) in enumerate(zip(releases, trial.sites, strict=True))
    ]
    certificate = releases[0].certificate
    return Defence(
        site_settings(trial),
        sources,
        view=DrawnView(releases[0], trial.generator("released")),
        facts={"epsilon": certificate.epsilon, "delta": certificate.delta},
    )


def refit_release(case: Case, images: ImageSet, number: int) -> Shadow:
    """Release other images at the same epsilon."""
    drawn = _release(case, images, ("shadow", number))

    def likelihood(pictures: Tensor, labels: Tensor) -> Tensor:
        chosen: Tensor = drawn.scores(pictures).gather(1, labels[:, None])[:, 0]
        return chosen.clamp_min(1e-12).log()

    generator = case.trial.generator("shadow draw", number)
    return Shadow(ClassDraws(drawn, images.labels, generator), likelihood)


def _release(case: Case, images: ImageSet, purpose: Sequence[object]) -> ClassRelease:
    trial = case.trial
    seed = torch.randint(256, (32,), dtype=torch.uint8, generator=trial.generator(*purpose, "key"))
    return release(
        images,
        trial.public,
        num_classes=trial.num_classes,
        epsilon=float(case.setting),
        delta=DELTA,
        generator=trial.generator(*purpose, "release"),
        # A secret that a repeated study draws again; a site's own comes from the system.
        noise=FrozenNoise(seed.numpy().tobytes()),
        features=_features(case),
    )


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
