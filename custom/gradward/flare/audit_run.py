"""One job's audits: canary orders, spool, attack workers, score requests, records."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np

from gradward.attacks.worker_process import WorkerError, WorkerProcess
from gradward.data import DataError
from gradward.flare.audit_attack import Attacked, AttackFailed, AuditSettings, attack_update
from gradward.flare.audit_records import AuditRecords
from gradward.flare.audit_spool import AuditSpool, CapturedUpdate
from gradward.flare.canary_protocol import CanaryAnswer, CanaryOrder
from gradward.flare.canary_scoring import score_canaries
from gradward.flare.courier import Courier
from gradward.flare.experiment import Experiment
from gradward.flare.open_audits import OpenAudits
from gradward.flare.protocol import ScoreReply
from gradward.flare.site import Site, SiteSettingsError
from gradward.report.records import LeakageLog, LeakageRecord


@dataclass(frozen=True)
class _Order:
    """A canary update that a site is still to be asked for."""

    site: str
    round: int


class AuditRun:
    """Takes captured updates, or asks for canaries, and leaves records.

    Order of events for one update: written to the spool, attacked by a worker, its reconstructions
    sent to the site, its records appended, its spool entry removed. A canary update is scored here
    instead: no site is asked about it.
    """

    def __init__(
        self,
        experiment: Experiment,
        server: Site,
        settings: AuditSettings,
        log_file: LeakageLog,
        log: Callable[[str], None],
        changed: Callable[..., None],
        recorded: Callable[[LeakageRecord], None] = lambda record: None,
    ) -> None:
        """Start the threads, which load public images and start workers while sites get ready.

        Args:
            experiment: what server and sites agree on.
            server: the server's own data, device and threads.
            settings: the job's settings of the audit.
            log_file: where records go.
            log: takes a line for the server's log.
            changed: told ``audits_open=n`` at every change.
            recorded: told every record that was written.
        """
        self.courier = Courier(settings.score_timeout)
        self._experiment = experiment
        self._settings = settings
        self._records = AuditRecords(
            log_file,
            job=settings.job,
            seed=experiment.seed,
            subject=settings.subject,
            log=log,
            told=recorded,
        )
        self._log = log
        self._changed = changed
        self._spool = AuditSpool(experiment, server)
        self._open = OpenAudits()
        self._to_spool: queue.Queue[
            CapturedUpdate | _Order | tuple[int, Mapping[str, np.ndarray]]
        ] = queue.Queue()
        self._to_attack: queue.Queue[CapturedUpdate] = queue.Queue()
        self._workers = [
            WorkerProcess(self._spool.folder, settings.worker_module, modules=settings.own_modules)
            for _ in range(settings.workers)
        ]
        threading.Thread(target=self._spool_forever, daemon=True).start()
        for worker, device in zip(self._workers, cycle(server.audit_devices), strict=False):
            arguments = (worker, device)
            threading.Thread(target=self._attack_forever, args=arguments, daemon=True).start()

    @property
    def open_audits(self) -> int:
        """Updates captured, or canaries ordered, whose records are not complete."""
        return len(self._open)

    def remember_global(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the global weights that a round starts from."""
        self._to_spool.put((number, arrays))

    def submit(self, update: CapturedUpdate) -> None:
        """Take an update; returns at once."""
        if self._opened(update.site, update.round):
            self._to_spool.put(update)

    def order_canary(self, site: str, number: int) -> None:
        """Ask a site for a canary update on a round's global weights; returns at once.

        Whatever comes of it is on record; asking again changes nothing.
        """
        if self._opened(site, number):
            self._to_spool.put(_Order(site, number))

    def reject(self, site: str, number: int, reason: str, status: str = "failed") -> None:
        """Put an update on record that cannot be attacked."""
        for attack in self._settings.attack_names:
            self._records.write(site, number, attack, status=status, reason=reason)

    def round_done(self, number: int) -> None:
        """Let go of a round's global weights once its audits are finished."""
        self._open.round_done(number)
        self._forget_global(number)

    def give_up(self, reason: str) -> int:
        """Put what is still open on record as not scored; return how many updates that were."""
        rest = self._open.all()
        for site, number in rest:
            self._fail(site, number, reason, status="unscored")
        return len(rest)

    def stop(self) -> None:
        """End the workers and remove the spool."""
        self.give_up("the run ended before this audit was finished")
        for worker in self._workers:
            worker.stop()
        self._spool.remove()

    def _opened(self, site: str, number: int) -> bool:
        """Note that an audit is to be done, unless it is under way or on record."""
        pending = self._records.missing(site, number, self._settings.attack_names)
        if not self._open.add(site, number, pending):
            return False
        self._changed(audits_open=self.open_audits)
        return True

    # The spool -----------------------------------------------------------------------------------

    def _spool_forever(self) -> None:
        while True:
            item = self._to_spool.get()
            try:
                if isinstance(item, CapturedUpdate):
                    self._spool.put_update(item)
                    # The arrays are on disk: a long queue must not hold them in memory.
                    self._to_attack.put(replace(item, arrays={}))
                elif isinstance(item, _Order):
                    self._send_order(item)
                else:
                    self._spool.put_global(*item)
            except Exception as error:
                reason = f"spooling failed ({type(error).__name__})"
                if isinstance(error, DataError | SiteSettingsError):
                    reason = str(error)
                if isinstance(item, CapturedUpdate | _Order):
                    self._fail(item.site, item.round, reason)
                else:
                    self._log(reason)

    def _send_order(self, order: _Order) -> None:
        def take(answer: CanaryAnswer | None, problem: str) -> None:
            # Under the workflow's lock: attacks and disk are the business of other threads.
            if answer is None:
                self._fail(order.site, order.round, problem, status="absent")
            elif self._open.has(order.site, order.round):
                self._to_spool.put(
                    CapturedUpdate(
                        order.site,
                        order.round,
                        answer.arrays,
                        canaries=answer.images,
                        steps=answer.steps,
                    )
                )

        weights, checksum = self._spool.global_weights(order.round), self._spool.public().checksum
        self.courier.submit(CanaryOrder(order.site, order.round, weights, checksum), take)

    def _forget_global(self, number: int) -> None:
        if not self._open.needs_round(number):
            self._spool.forget_global(number)

    # Attacks -------------------------------------------------------------------------------------

    def _attack_forever(self, worker: WorkerProcess, device: str) -> None:
        with contextlib.suppress(DataError, SiteSettingsError, WorkerError, OSError):
            # What is wrong is told with the first update; this is to have it ready by then.
            worker.start()
            self._spool.public()
        while True:
            update = self._to_attack.get()
            if not self._open.has(update.site, update.round):
                continue
            try:
                self._attack(worker, device, update)
            except (AttackFailed, WorkerError, DataError, SiteSettingsError) as error:
                self._fail(update.site, update.round, str(error))
            except Exception as error:
                reason = f"the audit failed with {type(error).__name__}"
                self._fail(update.site, update.round, reason)
                self._log(f"an audit failed with {type(error).__name__}: {error}")

    def _attack(self, worker: WorkerProcess, device: str, update: CapturedUpdate) -> None:
        found = attack_update(worker, update, self._experiment, self._settings, self._spool, device)
        told, public = update.canaries, self._spool.public()
        if told is not None:
            # On record is how many different ones there were.
            update = replace(update, canaries=min(told, len(public.part("canary"))))
        for outcome in found:
            take = self._taking(update, outcome)
            if outcome.question is None:
                take(None, outcome.real["reason"])
            elif told is None:
                self.courier.submit(outcome.question, take)
            else:
                request = outcome.question.load()
                take(score_canaries(request, told, self._experiment, public), "")

    # Records -------------------------------------------------------------------------------------

    def _taking(
        self, update: CapturedUpdate, outcome: Attacked
    ) -> Callable[[ScoreReply | None, str], None]:
        def take(reply: ScoreReply | None, problem: str) -> None:
            self._records.finish(
                update, outcome.attack, outcome.real, outcome.control, reply, problem
            )
            self._close(update.site, update.round, outcome.attack)

        return take

    def _fail(self, site: str, number: int, reason: str, status: str = "failed") -> None:
        for attack in self._open.pending(site, number):
            self._records.write(site, number, attack, status=status, reason=reason)
            self._close(site, number, attack)

    def _close(self, site: str, number: int, attack: str) -> None:
        """Tick off one attack; with the last one the update leaves the spool."""
        if not self._open.tick(site, number, attack):
            return
        self._spool.forget_update(site, number)
        self._forget_global(number)
        self._changed(audits_open=self.open_audits)
