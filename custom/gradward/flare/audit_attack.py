"""The attacks of a job on one spooled update, as a worker process carries them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradward.attacks.portfolio import AttackSpec
from gradward.attacks.search import Budget
from gradward.attacks.worker_process import WorkerProcess
from gradward.flare.audit_spool import AuditSpool, CapturedUpdate
from gradward.flare.experiment import Experiment
from gradward.flare.protocol import ScoreRequest
from gradward.flare.seeds import derive_seed
from gradward.report.records import LIVE, SUBJECTS


@dataclass(frozen=True)
class AuditSettings:
    """What the job says about its audits; see :class:`~gradward.flare.auditor.InversionAuditor`."""

    job: str
    attacks: Sequence[Mapping[str, Any]]
    budget: Mapping[str, Any]
    workers: int
    attack_timeout: float
    score_timeout: float
    keep_in: Path | None
    worker_module: str
    subject: str = LIVE

    @property
    def attack_names(self) -> list[str]:
        """Names of the attacks, in order."""
        return [attack["name"] for attack in self.attacks]


@dataclass(frozen=True)
class Attacked:
    """What one attack came to.

    Attributes:
        real, control: what the worker says of the attack and of its control, if that ran.
        request: its reconstructions, to be scored; None if there are none.
    """

    real: Mapping[str, Any]
    control: Mapping[str, Any] | None
    request: ScoreRequest | None

    @property
    def attack(self) -> str:
        """Name of the attack."""
        return str(self.real["attack"])


def check_audit(
    attacks: Sequence[Mapping[str, Any]],
    budget: Mapping[str, Any],
    *,
    counts: Mapping[str, Any],
    seconds: Mapping[str, Any],
    subject: str,
) -> None:
    """Check what a job says, so that a typo stops it at its start.

    Raises:
        TypeError, ValueError: with the offending value.
    """
    if isinstance(attacks, str) or not attacks:
        raise ValueError(f"attacks must be a non-empty list of objects, got {attacks!r}")
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    for name, value in seconds.items():
        if not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{name} must be a positive number of seconds, got {value!r}")
    if subject not in SUBJECTS:
        raise ValueError(f"subject must be one of {SUBJECTS}, got {subject!r}")
    AttackSpec.check_all(attacks)
    Budget(**budget)


class AttackFailed(RuntimeError):
    """No attack could be made of an update; says why."""


def attack_update(
    worker: WorkerProcess,
    update: CapturedUpdate,
    experiment: Experiment,
    settings: AuditSettings,
    spool: AuditSpool,
    device: str,
) -> list[Attacked]:
    """Let a worker attack a spooled update; one entry an attack, in order.

    Raises:
        AttackFailed: this is no update of the job's model, or everything broke.
        WorkerError: the worker ended or took too long.
        DataError, SiteSettingsError: the public images cannot be used.
    """
    checksum = spool.public().checksum
    reply = worker.request(
        {
            "id": f"{update.site} {update.round}",
            "entry": str(spool.entry(update.site, update.round)),
            "global": str(spool.global_file(update.round)),
            "model": experiment.model_arguments(),
            "settings": experiment.training_values(update.site),
            "n_images": None,
            "attacks": [dict(attack) for attack in settings.attacks],
            "budget": dict(settings.budget),
            "prior": str(spool.prior_file),
            "control": str(spool.control_file),
            "seed": derive_seed(experiment.seed, "audit", update.site, update.round),
            "device": device,
            "threads": 1,
        },
        settings.attack_timeout,
    )
    if reply["status"] != "ok":
        raise AttackFailed(reply["reason"])
    results = {(item["attack"], item["control"]): item for item in reply["results"]}
    images = spool.results(update)
    found = []
    for attack in settings.attack_names:
        real = results[attack, False]
        request = None
        if real["status"] == "ok":
            _keep(settings, update, attack, images[f"{attack}/real"])
            request = ScoreRequest(
                site=update.site,
                round=update.round,
                attack=attack,
                images=images[f"{attack}/real"],
                control=images.get(f"{attack}/control"),
                public_checksum=checksum,
            )
        found.append(Attacked(real, results.get((attack, True)), request))
    return found


def _keep(settings: AuditSettings, update: CapturedUpdate, attack: str, images: np.ndarray) -> None:
    if settings.keep_in is not None:
        settings.keep_in.mkdir(mode=0o700, exist_ok=True)
        np.save(settings.keep_in / f"{update.round}-{update.site}-{attack}.npy", images)
