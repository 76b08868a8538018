"""The audit beside the federation: attacks what the sites send, or canaries in its place."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.widgets.info_collector import InfoCollector

from gradward.attacks.worker_process import WORKER_MODULE
from gradward.flare.analytics import show_canary, write_scalars
from gradward.flare.audit_attack import AuditSettings, check_audit
from gradward.flare.audit_run import AuditRun
from gradward.flare.audit_spool import CapturedUpdate
from gradward.flare.experiment import experiment_of
from gradward.flare.own_code import require_allowed_attacks
from gradward.flare.round_book import RoundBook
from gradward.flare.site import open_site
from gradward.flare.states import MessageError, copy_arrays, read_dxo
from gradward.flare.status import STATS_GROUP, AuditStatus
from gradward.report.records import CANARY, FILE_NAME, LIVE, LeakageLog
from gradward.report.status import FINISHED


class InversionAuditor(FLComponent):
    """Captures what leaves the sites and hands it to an :class:`AuditRun`.

    It follows any workflow that sends its training task as NVFlare's own do and fires their events;
    a reply may be the difference to the weights that the task held, or the trained weights.

    With ``subject="canary"`` nothing of the training is captured: each site that takes the training
    task of an audited round is asked, beside it, for an update on declared public images, which is
    attacked and scored here and never aggregated (``docs/canary.md``).

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
        subject: str = LIVE,
    ) -> None:
        """Check every argument.

        Args:
            attacks: fields of :class:`gradward.attacks.AttackSpec`, one entry an attack.
            budget: fields of :class:`gradward.attacks.budget.Budget`, for each attack.
            experiment_id: id of the job's :class:`~gradward.flare.experiment.Experiment`.
            every_n_rounds: audit rounds whose number this divides.
            sites: names of the sites to audit; None for all.
            workers: attack worker processes.
            attack_timeout: seconds for all attacks on one update before their worker is killed.
            score_timeout: seconds a site has to answer one request, training included.
            keep_reconstructions: leave the reconstructions in the run folder. Of live updates they
                show patients.
            subject: ``"live"`` attacks the training's own updates, ``"canary"`` public images.

        Raises:
            TypeError, ValueError: with the offending value.
        """
        super().__init__()
        check_audit(
            attacks,
            budget,
            counts={"every_n_rounds": every_n_rounds, "workers": workers},
            seconds={"attack_timeout": attack_timeout, "score_timeout": score_timeout},
            subject=subject,
        )
        self.attacks = [dict(attack) for attack in attacks]
        self.budget = dict(budget)
        self.experiment_id = experiment_id
        self.every_n_rounds = every_n_rounds
        self.sites = None if sites is None else list(sites)
        self.workers = workers
        self.attack_timeout = float(attack_timeout)
        self.score_timeout = float(score_timeout)
        self.keep_reconstructions = keep_reconstructions
        self.subject = subject
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
        elif event_type == InfoCollector.EVENT_TYPE_GET_STATS:
            collector = fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR)
            collector.add_info(STATS_GROUP, self._status.values)
        elif event_type == EventType.END_RUN:
            self._run.stop()
            self._status.update(phase=FINISHED, audits_open=self._run.open_audits)

    def bind(self, controller: Controller, fl_ctx: FLContext) -> None:
        """Let questions travel through ``controller``, the workflow that is running."""
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
        given_up = self._run.give_up("the job ended before this audit was finished")
        # All is on record from here on; the page that is built next shall say so.
        self._status.update(phase=FINISHED, audits_open=self._run.open_audits)
        return given_up

    def _start(self, fl_ctx: FLContext) -> None:
        experiment = experiment_of(fl_ctx, self.experiment_id)
        require_allowed_attacks(self.attacks, fl_ctx)
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
            subject=self.subject,
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
            recorded=lambda record: show_canary(self, fl_ctx.get_engine(), record),
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
        peer = fl_ctx.get_peer_context()
        if self.subject == CANARY and peer is not None:
            # The site has its training task by now, which so comes first.
            site = peer.get_identity_name()
            if self._book.is_audited(number, site) and self._book.ask(site, number):
                run.order_canary(site, number)

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
        status.update(sites_heard=len(self._book.wanted(self._book.heard(number))))
        if self.subject == CANARY or not self._book.is_audited(number, site):
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
        run.submit(CapturedUpdate.of_reply(site, number, reply))
        held_up = {"capture_ms": 1000 * (time.perf_counter() - started)}
        write_scalars(self, fl_ctx, f"audit/{site}", held_up, number)

    def _rounds_done(self, run: AuditRun, status: AuditStatus, fl_ctx: FLContext) -> None:
        for number in self._book.close():
            reason, there = "the site sent no usable update", self._book.heard(number)
            if self.subject == CANARY:
                reason, there = "the site took no training task", self._book.asked(number)
            for site in self._book.audited(number, _clients(fl_ctx)):
                if site not in there:
                    run.reject(site, number, reason, status="absent")
            run.round_done(number)
            figures = {"open": run.open_audits, "sites_heard": len(self._book.heard(number))}
            write_scalars(self, fl_ctx, "audit", figures, number)
            status.update(audits_open=run.open_audits)


def _clients(fl_ctx: FLContext) -> list[str]:
    return sorted(client.name for client in fl_ctx.get_engine().get_clients())
