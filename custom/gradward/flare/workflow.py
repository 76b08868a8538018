"""The server's workflows: training with an audit beside it, then what the audit still owes."""

from __future__ import annotations

from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather

from gradward.flare.auditor import InversionAuditor
from gradward.flare.experiment import JobError, find_component
from gradward.flare.job_config import run_folder_of
from gradward.report.page import build_report


class _ClientTasks(dict[str, Any]):
    def pop(self, key: str, default: Any = None) -> Any:
        """Remove a client task; one that is already gone is no error."""
        return super().pop(key, default)


def survive_double_removal(controller: Controller) -> None:
    """Keep NVFlare's task monitor alive when a client task is removed twice.

    With fewer threads than sites the simulator may run one site in two processes at a time, and
    both fetch the same task. NVFlare 2.9 then removes it twice, the second time fails, and with the
    monitor's thread every later task stands for ever: the job hangs.
    """
    communicator = controller.communicator
    communicator._client_task_map = _ClientTasks(communicator._client_task_map)


class AuditedScatterAndGather(ScatterAndGather):
    """NVFlare's federated averaging; score requests travel between its training tasks."""

    # What a recipe writes into the job folder also where it is the default.
    _always_serialize_args = (
        "min_clients",
        "num_rounds",
        "wait_time_after_min_received",
        "train_timeout",
    )

    def __init__(
        self,
        min_clients: int = 1,
        num_rounds: int = 3,
        wait_time_after_min_received: int = 600,
        train_timeout: int = 1800,
        aggregator_id: str = "aggregator",
        persistor_id: str = "persistor",
        shareable_generator_id: str = "shareable_generator",
        train_task_name: str = "train",
        auditor_id: str = "auditor",
    ) -> None:
        """Set the quorum apart from the number of sites, so that one site's fault ends nothing.

        Args:
            min_clients: quorum; below the number of sites, or one error reply ends the job.
            num_rounds: rounds of training.
            wait_time_after_min_received: seconds to wait for the others once the quorum answered;
                a round ends at once when all have answered.
            train_timeout: seconds after which a round ends whoever is missing.
            aggregator_id, persistor_id, shareable_generator_id, train_task_name: as in NVFlare.
            auditor_id: id of the :class:`~gradward.flare.auditor.InversionAuditor`.
        """
        super().__init__(
            min_clients=min_clients,
            num_rounds=num_rounds,
            wait_time_after_min_received=wait_time_after_min_received,
            train_timeout=train_timeout,
            aggregator_id=aggregator_id,
            persistor_id=persistor_id,
            shareable_generator_id=shareable_generator_id,
            train_task_name=train_task_name,
            snapshot_every_n_rounds=0,
        )
        self.auditor_id = auditor_id

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Train; then let answers under way arrive, for a task dies with its workflow."""
        try:
            auditor = find_component(fl_ctx, self.auditor_id, InversionAuditor)
        except JobError as error:
            self.system_panic(str(error), fl_ctx)
            return
        survive_double_removal(self)
        auditor.bind(self, fl_ctx)
        try:
            super().control_flow(abort_signal, fl_ctx)
        finally:
            auditor.release(abort_signal)


class AuditDrain(Controller):
    """The job's last workflow: finishes open audits and builds ``report/index.html``."""

    _always_serialize_args = ("timeout",)

    def __init__(self, auditor_id: str = "auditor", timeout: float = 1800.0) -> None:
        """Check every argument.

        Args:
            auditor_id: id of the :class:`~gradward.flare.auditor.InversionAuditor`.
            timeout: seconds after which open audits are put on record as not scored.

        Raises:
            ValueError: with the offending value.
        """
        super().__init__()
        if not isinstance(timeout, int | float) or timeout < 0:
            raise ValueError(f"timeout must be a number of seconds of at least 0, got {timeout!r}")
        self.auditor_id = auditor_id
        self.timeout = timeout

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to prepare."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Wait for the audits, bounded; then write the report."""
        auditor = find_component(fl_ctx, self.auditor_id, InversionAuditor)
        survive_double_removal(self)
        auditor.bind(self, fl_ctx)
        left = auditor.drain(self.timeout, abort_signal, fl_ctx)
        if left:
            self.log_warning(fl_ctx, f"{left} audits were given up after {self.timeout:.0f} s")
        run_folder = run_folder_of(fl_ctx)
        try:
            page = build_report(run_folder)
        except Exception as error:
            # The records are safe; `gradward report` can build the page from them.
            self.log_warning(
                fl_ctx, f"the report could not be built ({type(error).__name__}: {error})"
            )
        else:
            self.log_info(fl_ctx, f"report: {page}")

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to stop."""

    def process_result_of_unknown_task(
        self,
        client: Client,
        task_name: str,
        client_task_id: str,
        result: Shareable,
        fl_ctx: FLContext,
    ) -> None:
        """An answer that came too late is on record as not given."""
        self.log_warning(fl_ctx, f"{client.name} answered '{task_name}' too late")
