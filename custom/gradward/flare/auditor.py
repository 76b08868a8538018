"""The audit beside the federation: attacks what the sites send, or canaries in its place."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.dxo import DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from gradward.attacks.worker_process import WORKER_MODULE
from gradward.flare.analytics import show_canary, write_scalars
from gradward.flare.audit_attack import AuditSettings, check_audit
from gradward.flare.audit_run import AuditRun
from gradward.flare.audit_spool import CapturedUpdate
from gradward.flare.experiment import experiment_of
from gradward.flare.site import open_site
from gradward.flare.states import MessageError, copy_arrays, read_dxo
from gradward.flare.status import AuditStatus
from gradward.report.records import CANARY, FILE_NAME, LIVE, LeakageLog


class InversionAuditor(FLComponent):
    """Captures what leaves the sites and hands it to an :class:`AuditRun`.

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
            attacks: fields of :class:`gradward.attacks.portfolio.AttackSpec`, one entry an attack.
            budget: fields of :class:`gradward.attacks.portfolio.Budget`, for each attack.
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
        self._heard: dict[int, set[str]] = {}
        self._asked: dict[int, set[str]] = {}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Follow the run."""
        if event_type == EventType.START_RUN:
            self._start(fl_ctx)
        elif self._run is None or self._status is None:
            return
        elif event_type == AppEventType.ROUND_STARTED:
            self._round_started(self._run, self._status, fl_ctx)
        elif event_type == AppEventType.BEFORE_TRAIN_TASK and self.subject == CANARY:
            self._ask(self._run, fl_ctx)
        elif event_type == AppEventType.AFTER_CONTRIBUTION_ACCEPT:
            self._capture(self._run, self._status, fl_ctx)
        elif event_type == AppEventType.ROUND_DONE:
            self._round_done(self._run, self._status, fl_ctx)
        elif event_type == EventType.END_RUN:
            self._run.stop()
            self._status.update(phase="finished", audits_open=self._run.open_audits)

    def bind(self, controller: Controller, fl_ctx: FLContext) -> None:
        """Let questions travel through ``controller``, the workflow that is running."""
        if self._run is not None:
            self._run.courier.bind(controller, fl_ctx.get_engine())

    def release(self, abort_signal: Signal) -> None:
        """Wait for the answers under way before the bound workflow ends."""
        if self._run is not None:
            self._run.courier.release(abort_signal)

    def drain(self, timeout: float, abort_signal: Signal) -> int:
        """Wait until every audit is finished; give up the rest, on record, after ``timeout``.

        Returns:
            The number of audits given up.
        """
        if self._run is None or self._status is None:
            return 0
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
        run_folder = Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id()))
        settings = AuditSettings(
            job=fl_ctx.get_job_id(),
            attacks=self.attacks,
            budget=self.budget,
            workers=self.workers,
            attack_timeout=self.attack_timeout,
            score_timeout=self.score_timeout,
            keep_in=run_folder / "reconstructions" if self.keep_reconstructions else None,
            worker_module=self.worker_module,
            subject=self.subject,
        )
        self._heard.clear()
        self._asked.clear()
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

    def _audited(self, number: int) -> bool:
        return number % self.every_n_rounds == 0

    def _concerns(self, site: str, number: int) -> bool:
        return self._audited(number) and (self.sites is None or site in self.sites)

    def _ask(self, run: AuditRun, fl_ctx: FLContext) -> None:
        """Ask a site for a canary once it has its training task, which so comes first."""
        peer = fl_ctx.get_peer_context()
        number = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        if peer is not None and self._concerns(peer.get_identity_name(), number):
            self._asked.setdefault(number, set()).add(peer.get_identity_name())
            run.order_canary(peer.get_identity_name(), number)

    def _round_started(self, run: AuditRun, status: AuditStatus, fl_ctx: FLContext) -> None:
        number = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        self._heard.setdefault(number, set())
        status.update(
            phase="training",
            round=number,
            rounds=fl_ctx.get_prop(AppConstants.NUM_ROUNDS),
            sites=len(self._expected_sites(fl_ctx)),
            sites_heard=0,
        )
        if self._audited(number):
            # Aggregation changes the global weights in place: they are copied now.
            weights = fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)[ModelLearnableKey.WEIGHTS]
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
        heard = self._heard.setdefault(number, set())
        if site in heard:
            return
        heard.add(site)
        status.update(sites_heard=len(heard))
        if self.subject == CANARY or not self._concerns(site, number):
            return
        started = time.perf_counter()
        try:
            # By reference: NVFlare's aggregators leave a contribution's arrays alone, and a copy of
            # a large model would hold up the workflow.
            arrays = dict(read_dxo(result, DataKind.WEIGHT_DIFF).data)
        except MessageError as error:
            run.reject(site, number, str(error))
            return
        run.submit(CapturedUpdate(site, number, arrays))
        capture_ms = 1000 * (time.perf_counter() - started)
        write_scalars(self, fl_ctx, f"audit/{site}", {"capture_ms": capture_ms}, number)

    def _round_done(self, run: AuditRun, status: AuditStatus, fl_ctx: FLContext) -> None:
        number = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        if self._audited(number):
            there, reason = self._heard[number], "the site sent no usable update"
            if self.subject == CANARY:
                there, reason = self._asked.get(number, set()), "the site took no training task"
            for site in self._expected_sites(fl_ctx):
                if site not in there:
                    run.reject(site, number, reason, status="absent")
        run.round_done(number)
        sizes = {"open": float(run.open_audits), "sites_heard": float(len(self._heard[number]))}
        write_scalars(self, fl_ctx, "audit", sizes, number)
        status.update(audits_open=run.open_audits)

    def _expected_sites(self, fl_ctx: FLContext) -> list[str]:
        clients: list[Client] = list(fl_ctx.get_engine().get_clients())
        names = sorted(client.name for client in clients)
        return [name for name in names if self.sites is None or name in self.sites]
