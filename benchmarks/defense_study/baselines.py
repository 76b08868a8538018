"""The defences that others offer, and training on the public images alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gradward.data import ImageSet
from gradward.defenses.dp_sgd import plan_round
from gradward.defenses.gaussian_mechanism import limit_patients
from gradward.defenses.recalibration import calibration_images, recalibrate
from gradward.defenses.updates import (
    calibrated_noise,
    dual_prune,
    noise_deviation,
    withhold_buffers,
)
from gradward.training import BidoSettings, DpSgdSettings, RawImages, State

from .defence import Case, Defence, raw_sources
from .federation import site_settings
from .sources import PipelineView, RawView, ShiftedImages

DELTA = 1e-5
_GROUP_NORM = {"norm": "group"}
_BIDO_LAYERS = ("body.2", "body.5", "body.8")
# DP-SGD has its own best rate: clipped gradients are small, and momentum piles up their noise.
_PRIVATE: dict[str, Any] = {"lr": 0.2, "momentum": 0.0, "batch_size": 50}


def undefended(case: Case) -> Defence:
    """Return plain federated averaging; setting ``group`` has GroupNorm instead of BatchNorm."""
    trial = case.trial
    options = _GROUP_NORM if case.setting == "group" else {}
    view = None if options else RawView(trial)
    return Defence(site_settings(trial), raw_sources(trial), options=options, view=view)


def public_only(case: Case) -> Defence:
    """Train on the public images for as long as a federation does, with augmentation."""
    trial = case.trial
    settings = site_settings(trial)
    sources = [
        ShiftedImages(trial.public, trial.generator("shift", site))
        for site in range(len(trial.sites))
    ]
    return Defence(settings, sources)


def input_noise(case: Case) -> Defence:
    """Add Gaussian noise of this standard deviation to the images."""
    trial = case.trial
    settings = replace(site_settings(trial), input_noise=float(case.setting))
    return Defence(settings, raw_sources(trial), view=PipelineView(trial, settings))


def random_erasing(case: Case) -> Defence:
    """Erase a rectangle of an image with this probability."""
    trial = case.trial
    settings = replace(site_settings(trial), random_erasing=float(case.setting))
    return Defence(settings, raw_sources(trial), view=PipelineView(trial, settings))


def dp_sgd(case: Case, augmentations: int = 1, **tuning: Any) -> Defence:
    """DP-SGD; setting ``eps=8`` is a budget for the federation, ``sigma=.5`` a noise multiplier.

    A budget holds for patients: each site trains on one image of each. ``augmentations`` is that of
    :class:`DpSgdSettings`, ``tuning`` replaces fields of the training settings.
    """
    trial = case.trial
    kind, _, value = case.setting.partition("=")
    sources = raw_sources(trial)
    if kind == "eps":
        private = DpSgdSettings(
            epsilon=float(value),
            rounds=case.effort.rounds,
            delta=DELTA,
            augmentations=augmentations,
        )
        sources = [_one_image_a_patient(site) for site in trial.sites]
    else:
        private = DpSgdSettings(noise_multiplier=float(value), delta=DELTA)
    steps = math.ceil(len(sources[0]) / _PRIVATE["batch_size"])
    chosen = {**_PRIVATE, "steps": steps, **tuning}
    settings = replace(site_settings(trial), **chosen, dp_sgd=private)
    planned = plan_round(settings, len(sources[0]))
    step_noise = settings.lr * planned.noise_multiplier * planned.max_grad_norm
    return Defence(
        settings,
        sources,
        options=_GROUP_NORM,
        noise_std=lambda update: step_noise,
        facts={"noise_multiplier": planned.noise_multiplier, "images": len(sources[0])},
    )


def bido(case: Case) -> Defence:
    """BiDO with these weights, ``lambda_x,lambda_y``."""
    trial = case.trial
    lambda_x, lambda_y = map(float, case.setting.split(","))
    terms = BidoSettings(_BIDO_LAYERS, lambda_x, lambda_y)
    return Defence(replace(site_settings(trial), bido=terms), raw_sources(trial))


def update_noise(case: Case) -> Defence:
    """Add noise in proportion to the update: this fraction of its 95th percentile."""
    trial = case.trial
    generator, fraction = trial.generator("update noise"), float(case.setting)

    def send(site: int | None, update: State) -> State:
        return calibrated_noise(update, fraction, generator)

    def sigma(update: State) -> float:
        # The attacker sees the update with its noise; so much of it is the noise's own.
        seen = noise_deviation(update, 1.0, 95.0)
        return fraction * seen / (1 + (1.96 * fraction) ** 2) ** 0.5

    def serve(model: nn.Module) -> None:
        # Under much noise averaged variances turn negative; a server would not serve those.
        variances = [value for name, value in model.named_buffers() if name.endswith("running_var")]
        if any(bool((value <= 0).any()) for value in variances):
            recalibrate(model, calibration_images(trial.public))

    return Defence(
        site_settings(trial), raw_sources(trial), send=send, serve=serve, noise_std=sigma
    )


def pruning(case: Case) -> Defence:
    """Send only the entries above this percentile of absolute values (NVFlare's rule, no clip)."""
    trial = case.trial
    share = float(case.setting) / 100

    def send(site: int | None, update: State) -> State:
        floats = [value.flatten() for value in update.values() if value.is_floating_point()]
        sizes = torch.cat(floats).abs()
        cut = sizes.kthvalue(max(1, int(share * len(sizes)))).values
        return {
            name: torch.where(value.abs() > cut, value, 0) if value.is_floating_point() else value
            for name, value in update.items()
        }

    return Defence(site_settings(trial), raw_sources(trial), send=send)


def dual_pruning(case: Case) -> Defence:
    """Remove these shares of the largest and the smallest entries, ``.05,.75``."""
    trial = case.trial
    largest, smallest = map(float, case.setting.split(","))
    owed: dict[int, State] = {}

    def send(site: int | None, update: State) -> State:
        pruned, debt = dual_prune(
            update, owed.get(-1 if site is None else site, {}), largest, smallest
        )
        if site is not None:
            owed[site] = debt
        return pruned

    return Defence(site_settings(trial), raw_sources(trial), send=send)


def withheld_buffers(case: Case) -> Defence:
    """Send no BatchNorm buffers; the server measures them on public images."""
    trial = case.trial

    def send(site: int | None, update: State) -> State:
        return withhold_buffers(update)

    def serve(model: nn.Module) -> None:
        recalibrate(model, calibration_images(trial.public))

    return Defence(site_settings(trial), raw_sources(trial), send=send, serve=serve)


def _one_image_a_patient(site: ImageSet) -> RawImages:
    kept = site.subset(limit_patients(site.patients or (), 1))
    return RawImages(kept.images, kept.labels)
