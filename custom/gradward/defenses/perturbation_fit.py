"""Fitting a perturbation part by part, within a time budget, from where it was interrupted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradward.data.images import DataError, ImageSet
from gradward.data.splits import split_by_patient
from gradward.defenses.acceptance import Acceptance, joined, judge_channel
from gradward.defenses.autoencoder import (
    AutoencoderSettings,
    ConvAutoencoder,
    Progress,
    fit_autoencoder,
)
from gradward.defenses.channel import GatedChannel, rounded_down
from gradward.defenses.fit_parts import Clock, PartCache
from gradward.defenses.latent import ClassLatent, fit_latent, require_enough
from gradward.defenses.minimax import MinimaxSettings, learn_gates
from gradward.defenses.perturbation_settings import PerturbationSettings
from gradward.defenses.rate import uniform_gate
from gradward.defenses.seeding import seeded
from gradward.defenses.teacher import fit_teacher

# A public class needs this many; the site's own limit is a setting.
_LEAST_PUBLIC = 10
# With fewer classes a guess is right too often for hiding them to be worth its price.
_CLASSES_TO_HIDE = 4
# A site with fewer images is judged by held-out public ones.
_ENOUGH_VICTIMS = 50
_PARTS = ("autoencoder", "teacher", "gates", "acceptance")


@dataclass(frozen=True)
class FitData:
    """Whose images serve what.

    Attributes:
        own: that give class statistics, teacher and gates.
        autoencoder: that the autoencoder is fitted on.
        victims: that the acceptance gate attacks.
        others: its further candidates.
        attacker: that its attacker learns from.
    """

    own: ImageSet
    autoencoder: Tensor
    victims: ImageSet
    others: ImageSet
    attacker: ImageSet


@dataclass
class FittedChannel:
    """A channel and what became of its fit.

    Attributes:
        channel: gates and latent.
        acceptance: of the gate, None where no view is handed out (mode ``class``).
        figures: errors, and seconds by part.
    """

    channel: GatedChannel
    acceptance: Acceptance | None
    figures: dict[str, Any] = field(default_factory=dict)


def divide_data(settings: PerturbationSettings, site: ImageSet, public: ImageSet) -> FitData:
    """Say whose images serve what.

    A perturber fitted on the site still takes public images into its autoencoder: they cost
    nothing. One fitted on public images never sees the site's, except to be judged; at a site with
    fewer than 50 images a quarter of the public ones is held out for that.
    """
    if settings.fitted_on == "site":
        pictures = torch.cat([site.images, public.images])
        return FitData(site, pictures, victims=site, others=public, attacker=public)
    if len(site) >= _ENOUGH_VICTIMS or not settings.gated:
        return FitData(public, public.images, victims=site, others=public, attacker=public)
    patients = public.patients or tuple(str(index) for index in range(len(public)))
    fit, held = (
        public.subset(part)
        for part in split_by_patient(patients, [3, 1], strata=public.labels.tolist())
    )
    return FitData(fit, fit.images, victims=held, others=joined(site, fit), attacker=fit)


def fit_channel(
    settings: PerturbationSettings,
    data: FitData,
    num_classes: int,
    generator: torch.Generator,
    *,
    progress: Progress,
    seconds: float | None = None,
    cache: Path | None = None,
    judged: bool = True,
) -> FittedChannel:
    """Fit autoencoder, class statistics, teacher and gates, and judge the result.

    Args:
        settings: of a gated mode or of mode ``class``.
        data: from :func:`divide_data`.
        num_classes: of the task.
        generator: everything random; each part gets a generator of its own, so that a part that is
            taken from the cache changes nothing for those after it.
        progress: told the part's name and the share done.
        seconds: time budget; the parts are cut short to keep it, and the result then cannot be
            reproduced.
        cache: folder for finished parts and the autoencoder's checkpoint; the caller keeps apart
            what belongs to other data or settings.
        judged: False leaves the acceptance gate out, for studies; no site may train on the result.

    Raises:
        TooFewImages: a class has too few for statistics of its own.
        DataError: too few candidates to judge the perturber by, or too few classes to hide them.
    """
    if settings.mode == "class-hiding" and num_classes < _CLASSES_TO_HIDE:
        raise DataError(
            f"mode 'class-hiding' needs at least {_CLASSES_TO_HIDE} classes, the task has "
            f"{num_classes}; use mode 'class'"
        )
    clock = Clock(seconds)
    generators = {
        part: torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        for part in _PARTS
    }
    images, labels = data.own.images, data.own.labels
    conditional = settings.mode != "class-hiding"
    least = settings.min_class_images if settings.fitted_on == "site" else _LEAST_PUBLIC
    require_enough(labels, num_classes, least, conditional=conditional)

    def build_autoencoder() -> dict[str, Any]:
        height, width = images.shape[2:]
        with seeded(generators["autoencoder"]):
            model = ConvAutoencoder(images.shape[1], (height, width))
        error = fit_autoencoder(
            model,
            data.autoencoder,
            AutoencoderSettings(steps=settings.autoencoder_steps),
            generators["autoencoder"],
            progress=progress,
            seconds=clock.share("autoencoder"),
            checkpoint=cache / "autoencoder.checkpoint" if cache else None,
        )
        latent = fit_latent(
            model,
            images,
            labels,
            num_classes,
            conditional=conditional,
            least=least,
        )
        return {"latent": latent.to_state(), "error": error}

    def build_gates() -> dict[str, Any]:
        gate = _gates(settings, latent, data.own, num_classes, generators, clock, progress)
        return {"gate": gate}

    def judge() -> dict[str, Any]:
        progress("acceptance", 0.0)
        acceptance = judge_channel(
            channel,
            data.victims,
            data.others,
            data.attacker,
            num_classes=num_classes,
            limits=settings.limits,
            generator=generators["acceptance"],
        )
        return acceptance.figures()

    parts = PartCache(cache)
    found = parts.get("autoencoder", build_autoencoder)
    latent = ClassLatent.from_state(found["latent"])
    channel = GatedChannel(latent, parts.get("gates", build_gates)["gate"])
    acceptance = None
    if settings.gated and judged:
        acceptance = Acceptance(**parts.get("acceptance", judge))
    progress("acceptance", 1.0)
    figures = {"autoencoder_mse": found["error"], "fit_seconds": parts.seconds}
    return FittedChannel(channel, acceptance, figures)


def fit_fingerprint(
    settings: PerturbationSettings, data_key: str, num_classes: int, generator: torch.Generator
) -> str:
    """Name what a fit depends on, so that a cache is never taken for another fit's.

    Args:
        settings: of the perturbation.
        data_key: a keyed name of the images; a plain hash of them would betray them.
        num_classes: of the task.
        generator: in the state in which the fit will start.
    """
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    digest.update(f"{data_key} {num_classes} ".encode())
    digest.update(generator.get_state().numpy().tobytes())
    return digest.hexdigest()[:16]


def uniform_gates(rate: float, dimensions: int) -> Tensor:
    """Return gates ``(dimensions,)`` that are all alike and have the given rate."""
    return rounded_down(torch.full((dimensions,), uniform_gate(rate, dimensions)))


def _gates(
    settings: PerturbationSettings,
    latent: ClassLatent,
    own: ImageSet,
    num_classes: int,
    generators: dict[str, torch.Generator],
    clock: Clock,
    progress: Progress,
) -> Tensor:
    if settings.mode == "class":
        return torch.zeros(latent.dimensions)
    if settings.mode == "uniform":
        return uniform_gates(settings.rate, latent.dimensions)
    teacher = fit_teacher(own.images, own.labels, num_classes, generators["teacher"])
    return learn_gates(
        latent,
        own.images,
        own.labels,
        teacher,
        settings.rate,
        MinimaxSettings(steps=settings.gate_steps, privacy=settings.privacy),
        generators["gates"],
        progress=progress,
        seconds=clock.share("gates"),
    )
