"""TensorBoard files that can be read while the job runs."""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_opt.tracking.tb.tb_receiver import TBAnalyticsReceiver

from gradward.flare.analytics import FEDERATED_EVENT, LOCAL_EVENT, origin_of, scalars_in
from gradward.flare.job_config import run_folder_of
from gradward.report.overview import RunOverview
from gradward.report.run_folder import read_configuration


class LiveTBAnalyticsReceiver(TBAnalyticsReceiver):
    """NVFlare's receiver, flushed after every value: the stock one writes at the end of the run.

    Where the job has a :class:`~gradward.flare.run_log.RunLog`, a
    :class:`~gradward.report.overview.RunOverview` stands beside the sites' values.
    """

    def __init__(self, tb_folder: str = "tb_events") -> None:
        """Listen to the sites' values and to the server's own.

        Args:
            tb_folder: folder below the run folder; a sub-folder a site.
        """
        super().__init__(tb_folder=tb_folder, events=[LOCAL_EVENT, FEDERATED_EVENT])
        self._overview: RunOverview | None = None
        self._is_open = False

    def save(self, fl_ctx: FLContext, shareable: Shareable, record_origin: str) -> None:
        """Write one value and flush it."""
        record_origin = origin_of(fl_ctx, record_origin)
        super().save(fl_ctx, shareable, record_origin)
        writer = self.writers_table.get(record_origin)
        if writer is not None:
            writer.flush()
        self._note(fl_ctx, shareable, record_origin)

    def finalize(self, fl_ctx: FLContext) -> None:
        """Close the files."""
        super().finalize(fl_ctx)
        if self._overview is not None:
            self._overview.close()

    def _note(self, fl_ctx: FLContext, shareable: Shareable, site: str) -> None:
        """Bring the overview up to date; without one the values are still there."""
        try:
            if not self._is_open:
                # Not when the run starts: the configuration is written then.
                self._is_open = True
                run = run_folder_of(fl_ctx)
                configuration = read_configuration(run)
                if configuration is not None:
                    self._overview = RunOverview(Path(self.root_log_dir), configuration)
            if self._overview is not None:
                for tag, step, value in scalars_in(shareable):
                    self._overview.note(site, tag, step or 0, value)
        except Exception as error:
            self._overview = None
            self.log_warning(
                fl_ctx,
                f"TensorBoard has no overview from here on ({type(error).__name__}: {error})",
                fire_event=False,
            )
