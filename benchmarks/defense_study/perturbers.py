"""The learnable perturbation in its modes, and what its attacker holds."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from gradward.data import DataError, ImageSet
from gradward.defenses.autoencoder import no_progress
from gradward.defenses.channel import GatedChannel
from gradward.defenses.latent import TooFewImages
from gradward.defenses.ledger import PrivacyLedger
from gradward.defenses.noise import FrozenNoise
from gradward.defenses.perturbation_fit import FittedChannel, divide_data, fit_channel
from gradward.defenses.perturbation_settings import PerturbationSettings
from gradward.defenses.view_store import ViewStore
from gradward.defenses.views import ClassDraws, ViewDraws
from gradward.training import BatchSource

from .defence import Case, Defence, DefenceRefused
from .federation import site_settings
from .protocol import FIRST_SEED, Trial

# The study's images are public, so that it may go below what a hospital must keep.
_LEAST_CLASS_IMAGES = 10


@dataclass
class PerturbedView:
    """The channel and the views of the first site: all that its attacker can hold.

    Attributes:
        trial: whose first site holds the victims.
        channel: of the first site.
        latents: ``(N, r)`` its frozen views, or None where there are only draws of the class.
        generator: of those draws.
    """

    trial: Trial
    channel: GatedChannel
    latents: Tensor | None
    generator: torch.Generator

    def released(self, positions: Tensor) -> Tensor:
        """Return the perturbed pictures of these images; a draw of the class where that is all."""
        labels = self.trial.sites[0].labels[positions]
        if self.latents is None:
            return self.channel.latent.draw(labels, self.generator)[0]
        with torch.no_grad():
            return self.channel.picture(self.latents[positions], labels)

    def imitate(self, images: ImageSet, generator: torch.Generator) -> Tensor:
        """Put other images through the channel with fresh noise."""
        w, _ = self.channel.whiten(images.images, images.labels)
        with torch.no_grad():
            return self.channel.picture(self.channel.release_fresh(w, generator), images.labels)


def perturbed(mode: str, fitted_on: str = "site") -> Callable[[Case], Defence]:
    """Return what builds a mode; its setting is the rate in nats."""

    def build(case: Case) -> Defence:
        fitted: list[FittedChannel] = []
        for site, images in enumerate(case.trial.sites):
            # Settings that share an autoencoder fit it once.
            shared = f"autoencoder {mode == 'class-hiding'} {fitted_on} {site}.pt"
            generator = case.trial.generator("fit", site)
            judged = site == 0 and case.trial.seed == FIRST_SEED
            file = case.scratch / shared
            fitted.append(fit(case, mode, fitted_on, images, generator, file, judged=judged))
        released = [
            release(case, item, images, case.trial.generator("draw", site))
            for site, (item, images) in enumerate(zip(fitted, case.trial.sites, strict=True))
        ]
        view = PerturbedView(
            case.trial, fitted[0].channel, released[0].latents, case.trial.generator("released")
        )
        return Defence(
            site_settings(case.trial),
            [item.source for item in released],
            view=view,
            facts=_facts(fitted[0], released[0].clipped),
        )

    return build


def fit(
    case: Case,
    mode: str,
    fitted_on: str,
    images: ImageSet,
    generator: torch.Generator,
    autoencoder: Path,
    *,
    judged: bool,
) -> FittedChannel:
    """Fit one site's channel.

    All limits are open, so that the study also sees what a site's acceptance gate would refuse;
    what the gate found is kept.

    Args:
        case: gives rate, public images and effort.
        mode: of the perturber.
        fitted_on: ``"site"`` or ``"public"``.
        images: of the site.
        generator: of the fit.
        autoencoder: file of an autoencoder that was fitted on the same images with the same
            generator; written where it is missing.
        judged: whether by the acceptance gate as well, which takes as long as the rest.

    Raises:
        DefenceRefused: there are too few images.
    """
    rate: Any = {} if mode == "class" else {"rate": float(case.setting)}
    settings = PerturbationSettings(
        mode=mode,
        fitted_on=fitted_on,
        max_linkage=1.0,
        min_mse=0.0,
        min_class_images=_LEAST_CLASS_IMAGES,
        **rate,
        **case.effort.fit,
    )
    with TemporaryDirectory(dir=case.scratch) as cache:
        own = Path(cache) / "autoencoder.pt"
        if autoencoder.exists():
            shutil.copy(autoencoder, own)
        try:
            fitted = fit_channel(
                settings,
                divide_data(settings, images, case.trial.public),
                case.trial.num_classes,
                generator,
                progress=no_progress,
                cache=Path(cache),
                judged=judged,
            )
        except (TooFewImages, DataError) as error:
            raise DefenceRefused(str(error)) from None
        shutil.copy(own, autoencoder)
    return fitted


@dataclass(frozen=True)
class Release:
    """What a site trains on.

    Attributes:
        source: of the perturbed pictures.
        latents: ``(N, r)`` the views behind them, or None where there are only draws of the class.
        clipped: fraction of the images whose latent was clipped.
    """

    source: BatchSource
    latents: Tensor | None
    clipped: float


def release(
    case: Case, fitted: FittedChannel, images: ImageSet, generator: torch.Generator
) -> Release:
    """Hand out the views of a site's images, or draws of their classes."""
    channel = fitted.channel
    if not bool(channel.gate.any()):
        return Release(ClassDraws(channel.latent, images.labels, generator), None, 0.0)
    # A secret that a repeated study draws again; a site's own comes from the system.
    secret = torch.randint(256, (32,), dtype=torch.uint8, generator=generator).numpy().tobytes()
    version = hashlib.sha256(channel.gate.numpy().tobytes()).hexdigest()[:16]
    with TemporaryDirectory(dir=case.scratch) as folder:
        # A ledger for one perturber alone: a study compares many on the same images.
        ledger = PrivacyLedger(Path(folder) / "ledger.sqlite")
        latents, clipped = ViewStore(version, channel, FrozenNoise(secret), ledger).views(images)
    return Release(ViewDraws(channel, latents, images.labels, generator), latents, clipped)


def _facts(first: FittedChannel, clipped: float) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "rate": first.channel.rate,
        "dimensions": len(first.channel.gate),
        "clipped": clipped,
        **first.figures,
    }
    if first.acceptance is not None:
        facts["acceptance"] = first.acceptance.figures()
    return facts
