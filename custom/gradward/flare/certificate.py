"""What a site may say about a run: that it was certified, or that it was open to a live audit.

The two exclude each other: a live score is computed from the data, and no (epsilon, delta) covers
it. So the first training task of a job decides, ``certificate.json`` in the site's private folder
holds what was decided, and a site whose policy is changed under way carries the job out no more.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Any

from gradward.data import ImageSet
from gradward.flare.experiment import JobError
from gradward.flare.ledger import open_ledger
from gradward.flare.perturber import PerturbedImages
from gradward.flare.receipt import DP_SGD
from gradward.flare.rounds import write_private
from gradward.flare.site import Site
from gradward.report.site_folder import STATEMENT
from gradward.training import TrainingSettings

CERTIFICATE = "certificate"
LIVE_AUDIT = "live audit"
UNCERTIFIED = "uncertified"
DP_CLASS = "dp-class"
CERTIFIED_MODES = (DP_CLASS, DP_SGD)

_NOT_COVERED = (
    "the number of training images, which the number of steps tells as a power of two",
    "the held-out patients behind metrics on clean images",
    "what other jobs of this site have released; 'site_total' adds up what its ledger knows",
)


def banded(settings: TrainingSettings, n_images: int) -> TrainingSettings:
    """Return settings whose number of steps tells how many images there are only as a power of two.

    Steps are told outright, as a weight, and by BatchNorm's counters; so they are really as many as
    they are said to be. A job that fixes them for all sites is left as it is.
    """
    if settings.steps is not None:
        return settings
    return replace(settings, steps=1 << (settings.number_of_steps(n_images).bit_length() - 1))


def images_told(settings: TrainingSettings) -> int:
    """Return how many images the banded steps stand for; nothing else may tell of their number."""
    assert settings.steps is not None
    return settings.batch_size * max(1, settings.steps // settings.epochs)


def may_be_measured(site: Site, held_out: ImageSet, training: ImageSet) -> bool:
    """Whether a metric on clean images may leave: enough patients, none of whom is trained on.

    Where no patients are given, each image is one.
    """
    if not site.certified.required:
        return True
    if held_out.patients is None or training.patients is None:
        return len(held_out) >= site.certified.min_patients
    patients = set(held_out.patients)
    return len(patients) >= site.certified.min_patients and not patients & set(training.patients)


def run_kind(site: Site) -> str | None:
    """Return what this run was declared as, or None before its first training.

    Raises:
        JobError: the statement is damaged.
    """
    file = site.job_folder / STATEMENT
    if not file.is_file():
        return None
    try:
        kind = json.loads(file.read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind not in (CERTIFICATE, LIVE_AUDIT, UNCERTIFIED):
        raise JobError(f"this site's {STATEMENT} of the job is damaged; submit the job anew")
    return str(kind)


def declare_run(
    site: Site,
    settings: TrainingSettings,
    perturbed: PerturbedImages | None,
    training: ImageSet,
) -> str | None:
    """Decide by the site's policy what the run is, once, before its first update is made.

    Under a certificate the budget is entered in the site's ledger here, for the whole job.

    Args:
        site: that trains.
        settings: of the training.
        perturbed: what it trains on; None for its own images.
        training: its own images.

    Returns:
        A line for the log when the run was declared just now; None when it was before.

    Raises:
        JobError: the job gives no certificate although the policy demands one, or the run was
            declared as the other kind.
        LedgerError: the site's budget does not suffice.
    """
    kind = LIVE_AUDIT if site.scoring.enabled else UNCERTIFIED
    kind = CERTIFICATE if site.certified.required else kind
    earlier = run_kind(site)
    if earlier not in (None, kind) and CERTIFICATE in (earlier, kind):
        raise JobError(
            f"this run was declared as {earlier!r} and the site's policy now makes it {kind!r}; "
            "the two exclude each other, so submit the job anew"
        )
    if earlier in (kind, LIVE_AUDIT):
        return None
    statement: dict[str, Any] = {"run": kind, "site": site.name, "job": site.job_folder.name}
    if kind == CERTIFICATE:
        statement |= _certify(site, settings, perturbed, training)
    write_private(site.job_folder / STATEMENT, json.dumps(statement, indent=2) + "\n")
    if kind == CERTIFICATE:
        return (
            f"this run is certified: epsilon {statement['epsilon']:g} and delta "
            f"{statement['delta']:g} for each {statement['unit']}, by {statement['mechanism']}; "
            "live scoring is closed"
        )
    door = "open" if kind == LIVE_AUDIT else "closed"
    return f"this run has no certificate; live scoring is {door}"


def require_mechanism(site: Site, settings: TrainingSettings, mode: str | None) -> None:
    """Refuse a job that can give no certificate, before anything is fitted or paid for it.

    Args:
        site: that trains.
        settings: of the training.
        mode: of the perturbation; None without one.

    Raises:
        JobError: with what the job must say.
    """
    if not site.certified.required or mode == DP_CLASS:
        return
    if mode is not None:
        raise JobError(
            f"this site trains under a certificate only, which the perturbation mode {mode!r} "
            f"cannot give; use {DP_CLASS!r}, or DP-SGD without a perturbation"
        )
    if settings.dp_sgd is None or settings.dp_sgd.epsilon is None:
        raise JobError(
            "this site trains under a certificate only: the job must have the perturbation mode "
            f"{DP_CLASS!r}, or 'dp_sgd' with 'epsilon' and 'rounds' of the whole job"
        )


def _certify(
    site: Site,
    settings: TrainingSettings,
    perturbed: PerturbedImages | None,
    training: ImageSet,
) -> dict[str, Any]:
    require_mechanism(site, settings, None if perturbed is None else perturbed.mode)
    ledger = open_ledger(site)
    if perturbed is not None:
        if perturbed.certificate is None:
            raise JobError("the perturber states no epsilon and delta")
        # Its release is in the ledger since the perturber gave the first picture.
        mechanism, (epsilon, delta) = DP_CLASS, perturbed.certificate
        unit = "image" if training.patients is None else "patient"
    else:
        assert settings.dp_sgd is not None and settings.dp_sgd.epsilon is not None
        mechanism, epsilon, delta = DP_SGD, settings.dp_sgd.epsilon, settings.dp_sgd.delta
        one_each = training.patients is not None and len(set(training.patients)) == len(training)
        unit = "patient" if one_each else "image"
        # Each run draws noise of its own: another run of the same job is another release.
        ledger.register_release(
            f"{DP_SGD} {site.job_folder.name} {secrets.token_hex(8)}", epsilon, delta
        )
    total = ledger.total()
    return {
        "mechanism": mechanism,
        "epsilon": epsilon,
        "delta": delta,
        "unit": unit,
        "covers": "every update of this job, for what it tells of the training images",
        "not_covered": list(_NOT_COVERED),
        "site_total": {"epsilon": total.epsilon, "delta": total.delta},
    }
