"""One job's audits: spool, attack workers, score requests, records."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradward.attacks.worker_process import WorkerError, WorkerProcess
from gradward.data import DataError
from gradward.flare.audit_spool import AuditSpool, CapturedUpdate
from gradward.flare.courier import ScoringCourier
from gradward.flare.experiment import Experiment
from gradward.flare.protocol import SCORE_NAMES, ScoreReply, ScoreRequest
from gradward.flare.seeds import derive_seed
from gradward.flare.site import Site, SiteSettingsError
from gradward.report.records import LeakageLog, LeakageRecord

# The number of images on record is the attack's: it is known also where nothing was scored.
SCORES_ON_RECORD = tuple(name for name in SCORE_NAMES if name != "n_images")


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

    @property
    def attack_names(self) -> list[str]:
        """Names of the attacks, in order."""
        return [attack["name"] for attack in self.attacks]


class AuditRun:
    """Takes captured updates and leaves records.

    Order of events for one update: written to the spool, attacked by a worker, its reconstructions
    sent to the site, its records appended, its spool entry removed.
    """

    def __init__(
        self,
        experiment: Experiment,
        server: Site,
        settings: AuditSettings,
        log_file: LeakageLog,
        log: Callable[[str], None],
        changed: Callable[..., None],
    ) -> None:
        """Start the threads, which load public images and start workers while sites get ready.

        Args:
            experiment: what server and sites agree on.
            server: the server's own data, device and threads.
            settings: the job's settings of the audit.
            log_file: where records go.
            log: takes a line for the server's log.
            changed: told ``audits_open=n`` at every change.
        """
        self.courier = ScoringCourier(settings.score_timeout)
        self._experiment = experiment
        self._server = server
        self._settings = settings
        self._records = log_file
        self._log = log
        self._changed = changed
        self._spool = AuditSpool(experiment, server)
        self._lock = threading.Lock()
        self._open: dict[tuple[str, int], set[str]] = {}
        self._finished_rounds: set[int] = set()
        self._to_spool: queue.Queue[CapturedUpdate | tuple[int, Mapping[str, np.ndarray]]] = (
            queue.Queue()
        )
        self._to_attack: queue.Queue[CapturedUpdate] = queue.Queue()
        self._workers = [
            WorkerProcess(self._spool.folder, settings.worker_module, modules=settings.own_modules)
            for _ in range(settings.workers)
        ]
        threading.Thread(target=self._spool_forever, daemon=True).start()
        for worker in self._workers:
            threading.Thread(target=self._attack_forever, args=(worker,), daemon=True).start()

    @property
    def open_audits(self) -> int:
        """Updates captured whose records are not complete."""
        with self._lock:
            return len(self._open)

    def remember_global(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the global weights that a round starts from."""
        self._to_spool.put((number, arrays))

    def submit(self, update: CapturedUpdate) -> None:
        """Take an update; returns at once."""
        pending = {
            attack
            for attack in self._settings.attack_names
            if not self._records.knows(update.site, update.round, attack, self._experiment.seed)
        }
        if not pending:
            return
        with self._lock:
            self._open[update.site, update.round] = pending
        self._to_spool.put(update)
        self._changed(audits_open=self.open_audits)

    def reject(self, site: str, number: int, reason: str, status: str = "failed") -> None:
        """Put an update on record that cannot be attacked."""
        for attack in self._settings.attack_names:
            self._record(site, number, attack, status=status, reason=reason)

    def round_done(self, number: int) -> None:
        """Let go of a round's global weights once its audits are finished."""
        with self._lock:
            self._finished_rounds.add(number)
        self._forget_global(number)

    def give_up(self, reason: str) -> int:
        """Put what is still open on record as not scored; return how many updates that were."""
        with self._lock:
            rest = {key: set(attacks) for key, attacks in self._open.items()}
        for (site, number), attacks in rest.items():
            for attack in attacks:
                self._record(site, number, attack, status="unscored", reason=reason)
                self._close(site, number, attack)
        return len(rest)

    def stop(self) -> None:
        """End the workers and remove the spool."""
        self.give_up("the run ended before this audit was finished")
        for worker in self._workers:
            worker.stop()
        self._spool.remove()

    # The spool -----------------------------------------------------------------------------------

    def _spool_forever(self) -> None:
        while True:
            item = self._to_spool.get()
            try:
                if isinstance(item, CapturedUpdate):
                    self._spool.put_update(item)
                    # The arrays are on disk: a long queue must not hold them in memory.
                    self._to_attack.put(CapturedUpdate(item.site, item.round, {}))
                else:
                    self._spool.put_global(*item)
            except Exception as error:
                if isinstance(item, CapturedUpdate):
                    self._fail(item, f"the update could not be spooled ({type(error).__name__})")
                self._log(f"spooling failed: {type(error).__name__}")

    def _forget_global(self, number: int) -> None:
        with self._lock:
            in_use = any(open_round == number for _, open_round in self._open)
            if in_use or number not in self._finished_rounds:
                return
        self._spool.forget_global(number)

    # Attacks -------------------------------------------------------------------------------------

    def _attack_forever(self, worker: WorkerProcess) -> None:
        with contextlib.suppress(DataError, SiteSettingsError, WorkerError, OSError):
            # What is wrong is told with the first update; this is to have it ready by then.
            worker.start()
            self._spool.public()
        while True:
            update = self._to_attack.get()
            if not self._is_open(update):
                continue
            try:
                self._attack(worker, update)
            except (WorkerError, DataError, SiteSettingsError) as error:
                self._fail(update, str(error))
            except Exception as error:
                self._fail(update, f"the audit failed with {type(error).__name__}")
                self._log(f"an audit failed with {type(error).__name__}: {error}")

    def _is_open(self, update: CapturedUpdate) -> bool:
        """Whether the update was not given up meanwhile."""
        with self._lock:
            return (update.site, update.round) in self._open

    def _attack(self, worker: WorkerProcess, update: CapturedUpdate) -> None:
        public = self._spool.public()
        reply = worker.request(self._request(update), self._settings.attack_timeout)
        if reply["status"] != "ok":
            self._fail(update, reply["reason"])
            return
        results = {(item["attack"], item["control"]): item for item in reply["results"]}
        for attack in self._settings.attack_names:
            real, control = results[attack, False], results.get((attack, True))
            if real["status"] != "ok":
                self._finish_attack(update, attack, real, control, None, real["reason"])
                continue
            self._keep(update, attack)
            self.courier.submit(
                update.site,
                self._score_request(update, attack, public.checksum),
                self._answer(update, attack, real, control),
            )

    def _score_request(
        self, update: CapturedUpdate, attack: str, checksum: str
    ) -> Callable[[], ScoreRequest]:
        def read() -> ScoreRequest:
            images, of_control = self._spool.result(update.site, update.round, attack)
            return ScoreRequest(
                update.site, update.round, attack, images, of_control, public_checksum=checksum
            )

        return read

    def _request(self, update: CapturedUpdate) -> dict[str, Any]:
        experiment = self._experiment
        return {
            "id": f"{update.site} {update.round}",
            "entry": str(self._spool.entry(update.site, update.round)),
            "global": str(self._spool.global_file(update.round)),
            "model": experiment.model_arguments(),
            "settings": experiment.training_values(update.site),
            "n_images": None,
            "attacks": [dict(attack) for attack in self._settings.attacks],
            "budget": dict(self._settings.budget),
            "prior": str(self._spool.prior_file),
            "control": str(self._spool.control_file),
            "seed": derive_seed(experiment.seed, "audit", update.site, update.round),
            "device": self._server.device,
            "threads": 1,
        }

    def _keep(self, update: CapturedUpdate, attack: str) -> None:
        if self._settings.keep_in is not None:
            images, _ = self._spool.result(update.site, update.round, attack)
            self._settings.keep_in.mkdir(mode=0o700, exist_ok=True)
            np.save(self._settings.keep_in / f"{update.round}-{update.site}-{attack}.npy", images)

    # Records -------------------------------------------------------------------------------------

    def _answer(
        self,
        update: CapturedUpdate,
        attack: str,
        real: Mapping[str, Any],
        control: Mapping[str, Any] | None,
    ) -> Callable[[ScoreReply | None, str], None]:
        def take(reply: ScoreReply | None, problem: str) -> None:
            self._finish_attack(update, attack, real, control, reply, problem)

        return take

    def _finish_attack(
        self,
        update: CapturedUpdate,
        attack: str,
        real: Mapping[str, Any],
        control: Mapping[str, Any] | None,
        reply: ScoreReply | None,
        problem: str,
    ) -> None:
        """Write the records of one attack, real and control, whatever became of it."""
        for result, is_control in ((real, False), (control, True)):
            if result is None:
                continue
            status, reason = result["status"], result["reason"]
            scores: Mapping[str, Any] | None = None
            if status == "ok":
                if reply is None:
                    status, reason = "unscored", problem
                else:
                    status, reason = reply.status, reply.reason
                    scores = reply.control if is_control else reply.real
            details: dict[str, Any] = {
                "n_images": result["n_images"],
                "loss": result["loss"],
                "evals": result["evals"],
                "seconds": result["seconds"],
                "knowledge": result["knowledge"],
            }
            if scores is not None:
                details |= {name: scores[name] for name in SCORES_ON_RECORD}
            if reply is not None:
                details["membership"] = reply.membership
                if reply.prior is not None:
                    details["prior"] = reply.prior
            self._record(
                update.site,
                update.round,
                attack,
                status=status,
                reason=reason,
                control=is_control,
                **details,
            )
        self._close(update.site, update.round, attack)

    def _fail(self, update: CapturedUpdate, reason: str) -> None:
        with self._lock:
            attacks = list(self._open.get((update.site, update.round), ()))
        for attack in attacks:
            self._record(update.site, update.round, attack, status="failed", reason=reason)
            self._close(update.site, update.round, attack)

    def _record(
        self,
        site: str,
        number: int,
        attack: str,
        *,
        status: str,
        control: bool = False,
        **rest: Any,
    ) -> None:
        self._records.append(
            LeakageRecord(
                job=self._settings.job,
                seed=self._experiment.seed,
                site=site,
                round=number,
                attack=attack,
                control=control,
                status=status,
                **rest,
            )
        )
        if status not in ("ok", "skipped") and not control:
            self._log(f"{site}, round {number}, {attack}: {status}: {rest.get('reason', '')}")

    def _close(self, site: str, number: int, attack: str) -> None:
        """Tick off one attack; with the last one the update leaves the spool."""
        with self._lock:
            pending = self._open.get((site, number))
            if pending is None:
                return
            pending.discard(attack)
            if pending:
                return
            del self._open[site, number]
        self._spool.forget_update(site, number)
        self._forget_global(number)
        self._changed(audits_open=self.open_audits)
