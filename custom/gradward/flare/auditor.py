"""The audit beside the federation: attacks each update the server receives."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.dxo import DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from gradward.attacks.portfolio import AttackSpec, Budget
from gradward.attacks.worker_process import WORKER_MODULE
from gradward.flare.analytics import write_scalars
from gradward.flare.audit_run import AuditRun, AuditSettings
from gradward.flare.audit_spool import CapturedUpdate
from gradward.flare.experiment import experiment_of
from gradward.flare.round_book import RoundBook
from gradward.flare.site import open_site
from gradward.flare.states import MessageError, read_dxo
from gradward.flare.status import AuditStatus
from gradward.report.records import FILE_NAME, LeakageLog


class InversionAuditor(FLComponent):
    """Captures what leaves the sites and hands it to an :class:`AuditRun`.

    It follows any workflow that sends its training task as NVFlare's own do and fires their events;
    a reply may be the difference to the weights that the task held, or the trained weights.

    Its handlers run under the workflow's lock, so they take hold and return; spool, attacks and
    scoring happen in threads and in a worker process.
    """

    worker_module = WORKER_MODULE

    def __init__(
        self,
        attacks: Sequence[Mapping[str, Any]],
        budget: Mapping[str, Any],
        experiment_id: str = "experiment",
        every_n_rounds: int = 1,
        sites: Sequence[str] | None = None,
        workers: int = 1,
        attack_timeout: float = 900.0,
        score_timeout: float = 600.0,
        keep_reconstructions: bool = False,
    ) -> None:
        """Check every argument.

        Args:
            attacks: fields of :class:`gradward.attacks.portfolio.AttackSpec`, one entry an attack.
            budget: fields of :class:`gradward.attacks.portfolio.Budget`, for each attack.
            experiment_id: id of the job's :class:`~gradward.flare.experiment.Experiment`.
            every_n_rounds: audit rounds whose number this divides.
            sites: names of the sites to audit; None for all.
            workers: attack worker processes.
            attack_timeout: seconds for all attacks on one update before their worker is killed.
            score_timeout: seconds a site has to answer one request, training included.
            keep_reconstructions: leave the reconstructions in the run folder. They show patients.

        Raises:
            TypeError, ValueError: with the offending value.
        """
        super().__init__()
        if isinstance(attacks, str) or not attacks:
            raise ValueError(f"attacks must be a non-empty list of objects, got {attacks!r}")
        for name, value in (("every_n_rounds", every_n_rounds), ("workers", workers)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        for name, seconds in (("attack_timeout", attack_timeout), ("score_timeout", score_timeout)):
            if not isinstance(seconds, int | float) or seconds <= 0:
                raise ValueError(f"{name} must be a positive number of seconds, got {seconds!r}")
        self.attacks = [dict(attack) for attack in attacks]
        self.budget = dict(budget)
        AttackSpec.check_all(self.attacks)
        Budget(**self.budget)
        self.experiment_id = experiment_id
        self.every_n_rounds = every_n_rounds
        self.sites = None if sites is None else list(sites)
        self.workers = workers
        self.attack_timeout = float(attack_timeout)
        self.score_timeout = float(score_timeout)
        self.keep_reconstructions = keep_reconstructions
        self._run: AuditRun | None = None
        self._status: AuditStatus | None = None
        self._book = RoundBook(every_n_rounds, self.sites)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Follow the run."""
        if event_type == EventType.START_RUN:
            self._start(fl_ctx)
        elif self._run is None or self._status is None:
            return
        elif event_type == AppEventType.ROUND_STARTED:
            self._round_started(self._run, self._status, fl_ctx)
        elif event_type == AppEventType.BEFORE_TRAIN_TASK:
            self._task_sent(self._run, fl_ctx)
        elif event_type == AppEventType.AFTER_CONTRIBUTION_ACCEPT:
            self._capture(self._run, self._status, fl_ctx)
        elif event_type == AppEventType.ROUND_DONE:
            self._rounds_done(self._run, self._status, fl_ctx)
        elif event_type == EventType.END_RUN:
            self._run.stop()
            self._status.update(phase="finished", audits_open=self._run.open_audits)

    def bind(self, controller: Controller, fl_ctx: FLContext) -> None:
        """Let score requests travel through ``controller``, the workflow that is running."""
        if self._run is not None:
            self._run.courier.bind(controller, fl_ctx.get_engine())

    def release(self, abort_signal: Signal) -> None:
        """Wait for the answers under way before the bound workflow ends."""
        if self._run is not None:
            self._run.courier.release(abort_signal)

    def drain(self, timeout: float, abort_signal: Signal, fl_ctx: FLContext) -> int:
        """Wait until every audit is finished; give up the rest, on record, after ``timeout``.

        Returns:
            The number of audits given up.
        """
        if self._run is None or self._status is None:
            return 0
        self._rounds_done(self._run, self._status, fl_ctx)
        self._status.update(phase="auditing")
        deadline = time.monotonic() + timeout
        while self._run.open_audits and not abort_signal.triggered:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self._run.courier.close()
        return self._run.give_up("the job ended before this audit was finished")

    def _start(self, fl_ctx: FLContext) -> None:
        experiment = experiment_of(fl_ctx, self.experiment_id)
        server = open_site(fl_ctx)
        job, workspace = fl_ctx.get_job_id(), fl_ctx.get_engine().get_workspace()
        run_folder = Path(workspace.get_run_dir(job))
        settings = AuditSettings(
            job=job,
            attacks=self.attacks,
            budget=self.budget,
            workers=self.workers,
            attack_timeout=self.attack_timeout,
            score_timeout=self.score_timeout,
            keep_in=run_folder / "reconstructions" if self.keep_reconstructions else None,
            worker_module=self.worker_module,
            own_modules=Path(workspace.get_app_custom_dir(job)),
        )
        self._book = RoundBook(self.every_n_rounds, self.sites)
        self._status = AuditStatus(run_folder)
        self._run = AuditRun(
            experiment,
            server,
            settings,
            LeakageLog(run_folder / FILE_NAME),
            log=lambda message: self.log_warning(fl_ctx, message, fire_event=False),
            changed=self._status.update,
        )

    def _round_started(self, run: AuditRun, status: AuditStatus, fl_ctx: FLContext) -> None:
        # NVFlare's FedAvg does not say when a round is done.
        self._rounds_done(run, status, fl_ctx)
        number = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        self._book.start(number)
        status.update(
            phase="training",
            round=number,
            rounds=fl_ctx.get_prop(AppConstants.NUM_ROUNDS),
            sites=len(self._book.wanted(_clients(fl_ctx))),
            sites_heard=0,
        )

    def _task_sent(self, run: AuditRun, fl_ctx: FLContext) -> None:
        """Keep the weights that a round's updates start from, with the first task that has them."""
        task = fl_ctx.get_prop(AppConstants.TRAIN_SHAREABLE)
        number = None if task is None else task.get_header(AppConstants.CURRENT_ROUND)
        if not isinstance(number, int) or not self._book.is_audited(number):
            return
        try:
            weights = read_dxo(task, DataKind.WEIGHTS).data
        except MessageError as error:
            self.log_warning(fl_ctx, f"round {number} cannot be audited: {error}", fire_event=False)
            return
        if self._book.learn_weights(number):
            # Aggregation changes the global weights in place: they are copied now.
            run.remember_global(number, copy_arrays(weights))

    def _capture(self, run: AuditRun, status: AuditStatus, fl_ctx: FLContext) -> None:
        result = fl_ctx.get_prop(AppConstants.TRAINING_RESULT)
        peer = fl_ctx.get_peer_context()
        if not isinstance(result, Shareable) or peer is None:
            return
        site = peer.get_identity_name()
        number = result.get_cookie(
            AppConstants.CONTRIBUTION_ROUND, fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        )
        if not self._book.hear(site, number):
            return
        status.update(sites_heard=self._book.heard(number))
        if not self._book.is_audited(number, site):
            return
        started = time.perf_counter()
        try:
            reply = read_dxo(result, DataKind.WEIGHT_DIFF, DataKind.WEIGHTS)
        except MessageError as error:
            run.reject(site, number, str(error))
            return
        if not self._book.knows_weights(number):
            run.reject(site, number, "the weights that this round started from are not known")
            return
        # By reference: NVFlare's aggregators leave a contribution's arrays alone, and a copy of a
        # large model would hold up the workflow.
        whole = reply.data_kind == DataKind.WEIGHTS
        run.submit(CapturedUpdate(site, number, dict(reply.data), is_whole_model=whole))
        held_up = {"capture_ms": 1000 * (time.perf_counter() - started)}
        write_scalars(self, fl_ctx, f"audit/{site}", held_up, number)

    def _rounds_done(self, run: AuditRun, status: AuditStatus, fl_ctx: FLContext) -> None:
        for number in self._book.close():
            for site in self._book.missing(number, _clients(fl_ctx)):
                run.reject(site, number, "the site sent no usable update", status="absent")
            run.round_done(number)
            figures = {"open": run.open_audits, "sites_heard": self._book.heard(number)}
            write_scalars(self, fl_ctx, "audit", figures, number)
            status.update(audits_open=run.open_audits)


def _clients(fl_ctx: FLContext) -> list[str]:
    return sorted(client.name for client in fl_ctx.get_engine().get_clients())


def copy_arrays(data: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Copy the arrays of a state."""
    return {name: np.array(value, copy=True) for name, value in data.items()}
