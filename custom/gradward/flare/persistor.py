"""The global model on the server's disk."""

from __future__ import annotations

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor

from gradward.flare.experiment import experiment_of


class ExperimentPersistor(PTFileModelPersistor):
    """NVFlare's file persistor with the model of the job's :class:`Experiment`."""

    def __init__(
        self, experiment_id: str = "experiment", source_ckpt_file_full_name: str | None = None
    ) -> None:
        """Args: id of the experiment; a checkpoint on the server to start from, or None."""
        super().__init__(source_ckpt_file_full_name=source_ckpt_file_full_name, load_device="cpu")
        self.experiment_id = experiment_id

    def handle_event(self, event: str, fl_ctx: FLContext) -> None:
        """Build the model before the base class asks for it."""
        if event == EventType.START_RUN:
            self.model = experiment_of(fl_ctx, self.experiment_id).build_model()
        super().handle_event(event, fl_ctx)
