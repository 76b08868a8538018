"""TensorBoard files that can be read while the job runs."""

from __future__ import annotations

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_opt.tracking.tb.tb_receiver import TBAnalyticsReceiver

LOCAL_EVENT = "analytix_log_stats"
FEDERATED_EVENT = f"fed.{LOCAL_EVENT}"


class LiveTBAnalyticsReceiver(TBAnalyticsReceiver):
    """NVFlare's receiver, flushed after every value: the stock one writes at the end of the run."""

    def __init__(self, tb_folder: str = "tb_events") -> None:
        """Listen to the sites' values and to the server's own.

        Args:
            tb_folder: folder below the run folder; a sub-folder a site.
        """
        super().__init__(tb_folder=tb_folder, events=[LOCAL_EVENT, FEDERATED_EVENT])

    def save(self, fl_ctx: FLContext, shareable: Shareable, record_origin: str) -> None:
        """Write one value and flush it."""
        super().save(fl_ctx, shareable, record_origin)
        writer = self.writers_table.get(record_origin)
        if writer is not None:
            writer.flush()
