"""From settings to what a site works with: fitted, judged, and let in or refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradward.data.images import ImageSet, require_same_form
from gradward.defenses.acceptance import PerturbationRefused
from gradward.defenses.autoencoder import Progress
from gradward.defenses.channel import GatedChannel
from gradward.defenses.class_draws import ClassRelease
from gradward.defenses.class_release import release
from gradward.defenses.fit_parts import PartCache
from gradward.defenses.noise import FrozenNoise
from gradward.defenses.perturbation_fit import (
    FittedChannel,
    divide_data,
    fit_channel,
    fit_fingerprint,
)
from gradward.defenses.perturbation_settings import PerturbationSettings

NOT_CERTIFIED = "not certified: the perturber was fitted on the site's images"
BY_RATE = "bounded by the rate: the perturber was fitted on public images"
COUNTS_ONLY = "nothing of the site but its class counts: all statistics are public"
CERTIFIED = "certified: covered by epsilon and delta of the release"


@dataclass(frozen=True)
class Admitted:
    """What a site works with.

    Attributes:
        mode: the one asked for, or ``class`` after a refusal.
        work: the channel of its views or class draws, or the certified release.
        report: figures of fit and acceptance as plain values.
    """

    mode: str
    work: GatedChannel | ClassRelease
    report: dict[str, Any]


def fit_and_admit(
    settings: PerturbationSettings,
    site_images: ImageSet,
    public: ImageSet,
    *,
    num_classes: int,
    noise: FrozenNoise,
    generator: torch.Generator,
    progress: Progress,
    seconds: float | None,
    cache: Path | None,
) -> Admitted:
    """Fit what ``settings`` ask for; see :meth:`SitePerturber.fit` for arguments and errors."""
    require_same_form(site_images, public)
    if cache is not None:
        data_key = "".join(
            noise.key(values)
            for part in (site_images, public)
            for values in (part.images, part.labels.float())
        )
        cache = cache / fit_fingerprint(settings, data_key, num_classes, generator)
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if settings.mode == "dp-class":
        return _released(
            settings, site_images, public, num_classes, noise, generator, progress, cache
        )
    fitted = fit_channel(
        settings,
        divide_data(settings, site_images, public),
        num_classes,
        generator,
        progress=progress,
        seconds=seconds,
        cache=cache,
    )
    mode, channel = _admit(settings, fitted)
    report = {**fitted.figures, "membership": _membership(settings, mode)}
    if fitted.acceptance is not None:
        report["acceptance"] = fitted.acceptance.figures()
    return Admitted(mode, channel, report)


def _released(
    settings: PerturbationSettings,
    site_images: ImageSet,
    public: ImageSet,
    num_classes: int,
    noise: FrozenNoise,
    generator: torch.Generator,
    progress: Progress,
    cache: Path | None,
) -> Admitted:
    assert settings.epsilon is not None and settings.delta is not None  # checked by the settings
    epsilon, delta = settings.epsilon, settings.delta

    def build() -> dict[str, Any]:
        made = release(
            site_images,
            public,
            num_classes=num_classes,
            epsilon=epsilon,
            delta=delta,
            generator=generator,
            noise=noise,
            progress=progress,
        )
        return made.to_state()

    parts = PartCache(cache)
    work = ClassRelease.from_state(parts.get("release", build))
    return Admitted(settings.mode, work, {"membership": CERTIFIED, "fit_seconds": parts.seconds})


def _admit(settings: PerturbationSettings, fitted: FittedChannel) -> tuple[str, GatedChannel]:
    """Return the mode and channel that the acceptance gate lets through."""
    if fitted.acceptance is None:
        return settings.mode, fitted.channel
    try:
        fitted.acceptance.require(settings.limits)
    except PerturbationRefused:
        if settings.on_refusal != "class":
            raise
        closed = torch.zeros_like(fitted.channel.gate)
        return "class", GatedChannel(fitted.channel.latent, closed)
    return settings.mode, fitted.channel


def _membership(settings: PerturbationSettings, mode: str) -> str:
    if settings.fitted_on == "site":
        return NOT_CERTIFIED
    return COUNTS_ONLY if mode == "class" else BY_RATE
