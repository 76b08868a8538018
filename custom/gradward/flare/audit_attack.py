"""The attacks of a job on one spooled update, as a worker process carries them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from nvflare.apis.shareable import Shareable

from gradward.attacks.budget import Budget
from gradward.attacks.spec import AttackSpec, attack_name
from gradward.attacks.worker_process import WorkerProcess
from gradward.flare.audit_spool import AuditSpool, CapturedUpdate
from gradward.flare.experiment import Experiment
from gradward.flare.protocol import SCORE_TASK, ScoreReply, ScoreRequest
from gradward.flare.seeds import derive_seed
from gradward.report.records import LIVE, SUBJECTS


@dataclass(frozen=True)
class AuditSettings:
    """What the job says about its audits; see :class:`~gradward.flare.auditor.InversionAuditor`.

    ``own_modules`` is the folder of the job's own code, where its network may be defined.
    """

    job: str
    attacks: Sequence[Mapping[str, Any]]
    budget: Mapping[str, Any]
    workers: int
    attack_timeout: float
    score_timeout: float
    keep_in: Path | None
    worker_module: str
    own_modules: Path | None = None
    subject: str = LIVE

    @property
    def attack_names(self) -> list[str]:
        """Names of the attacks, in order."""
        return [attack_name(attack) for attack in self.attacks]


@dataclass(frozen=True)
class SpooledScores:
    """Asks a site for the scores of reconstructions that are read when their turn has come.

    Where all sites' scoring waits for the end of training, they are too many for the memory.
    """

    site: str
    load: Callable[[], ScoreRequest]
    task: ClassVar[str] = SCORE_TASK

    def to_shareable(self) -> Shareable:
        """Pack the request."""
        return self.load().to_shareable()

    @staticmethod
    def read_reply(reply: Shareable) -> ScoreReply:
        """Unpack and check the answer; see :meth:`ScoreReply.from_shareable`."""
        return ScoreReply.from_shareable(reply)


@dataclass(frozen=True)
class Attacked:
    """What one attack came to.

    Attributes:
        real, control: what the worker says of the attack and of its control, if that ran.
        question: for the scores of its reconstructions; None if there are none.
    """

    real: Mapping[str, Any]
    control: Mapping[str, Any] | None
    question: SpooledScores | None

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
    AttackSpec.check_all(attacks)
    Budget(**budget)
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    for name, value in seconds.items():
        if not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{name} must be a positive number of seconds, got {value!r}")
    if subject not in SUBJECTS:
        raise ValueError(f"subject must be one of {SUBJECTS}, got {subject!r}")


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
            "steps": update.steps,
            "attacks": [dict(attack) for attack in settings.attacks],
            "budget": dict(settings.budget),
            "prior": str(spool.prior_file),
            "public": str(spool.public_file),
            "control": str(spool.control_file),
            "seed": derive_seed(experiment.seed, "audit", update.site, update.round),
            "rehearsal_seed": derive_seed(experiment.seed, "rehearsal", update.round),
            "device": device,
            "threads": 1,
        },
        settings.attack_timeout,
    )
    if reply["status"] != "ok":
        raise AttackFailed(reply["reason"])
    results = {(item["attack"], item["control"]): item for item in reply["results"]}
    found = []
    for attack in settings.attack_names:
        real, question = results[attack, False], None
        if real["status"] == "ok":
            load = _reader(spool, update, attack, checksum)
            if settings.keep_in is not None:
                _keep(settings.keep_in, load())
            question = SpooledScores(update.site, load)
        found.append(Attacked(real, results.get((attack, True)), question))
    return found


def _reader(
    spool: AuditSpool, update: CapturedUpdate, attack: str, checksum: str
) -> Callable[[], ScoreRequest]:
    def read() -> ScoreRequest:
        images, control = spool.result(update.site, update.round, attack)
        return ScoreRequest(
            update.site, update.round, attack, images, control, public_checksum=checksum
        )

    return read


def _keep(folder: Path, found: ScoreRequest) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    np.save(folder / f"{found.round}-{found.site}-{found.attack}.npy", found.images)
