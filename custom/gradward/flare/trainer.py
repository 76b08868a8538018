"""Local training on a site."""

from __future__ import annotations

import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from torch import nn

from gradward.data import DataError, ImageSet
from gradward.flare.analytics import stream_scalars
from gradward.flare.experiment import Experiment, JobError, experiment_of
from gradward.flare.rounds import RoundRecord, remember_round
from gradward.flare.seeds import generator_for
from gradward.flare.site import Site, SiteSettingsError, open_site, record_private_error
from gradward.flare.states import MessageError, as_arrays, load_global_state, read_dxo
from gradward.metrics.classification import evaluate
from gradward.models import ModelError, check_trainable
from gradward.training import (
    RawImages,
    TrainingAborted,
    TrainingSettings,
    state_copy,
    state_difference,
    train_locally,
)

LOCAL_MODEL = "local_model.pt"

# What a person can mend: told in one line, without a traceback that could name files.
EXPECTED_ERRORS = (
    DataError,
    JobError,
    ModelError,
    MessageError,
    SiteSettingsError,
    FloatingPointError,
)


class LocalTrainer(Executor):
    """Answers ``train``, ``validate`` and ``submit_model`` with the site's own data.

    A ``train`` reply is a ``WEIGHT_DIFF`` with BatchNorm buffers and the number of local steps.
    """

    def __init__(
        self,
        experiment_id: str = "experiment",
        analytics_sender_id: str = "analytics_sender",
        train_task: str = AppConstants.TASK_TRAIN,
        validate_task: str = AppConstants.TASK_VALIDATION,
        submit_model_task: str = AppConstants.TASK_SUBMIT_MODEL,
    ) -> None:
        """Args: ids of the job's components, and the names of the three tasks."""
        super().__init__()
        self.experiment_id = experiment_id
        self.analytics_sender_id = analytics_sender_id
        self.train_task = train_task
        self.validate_task = validate_task
        self.submit_model_task = submit_model_task
        self._splits: dict[str, ImageSet] = {}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Forget data of an earlier run in the same process."""
        if event_type == EventType.START_RUN:
            self._splits.clear()

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Carry out a task; a site that cannot says why and leaves the others alone."""
        tasks = {
            self.train_task: self._train,
            self.validate_task: self._validate,
            self.submit_model_task: self._submit_model,
        }
        if task_name not in tasks:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        site: Site | None = None
        try:
            site = open_site(fl_ctx)
            site.apply_threads()
            return tasks[task_name](site, shareable, fl_ctx, abort_signal)
        except TrainingAborted:
            return make_reply(ReturnCode.TASK_ABORTED)
        except EXPECTED_ERRORS as error:
            self.log_error(fl_ctx, f"cannot carry out '{task_name}': {error}")
        except Exception as error:
            # An unforeseen error may have images or names in its traceback.
            if site is not None:
                record_private_error(site)
            self.log_error(
                fl_ctx,
                f"'{task_name}' failed with {type(error).__name__}; the site's private errors.log "
                "has the details",
            )
        return make_reply(ReturnCode.EXECUTION_EXCEPTION)

    def _train(
        self, site: Site, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        experiment = experiment_of(fl_ctx, self.experiment_id)
        number = int(shareable.get_header(AppConstants.CURRENT_ROUND, 0))
        settings = experiment.settings_for(site.name)
        data = self._split(site, experiment, "training")
        model = experiment.build_model()
        before = load_global_state(model, read_dxo(shareable, DataKind.WEIGHTS).data)
        self._check_batches(model, experiment, settings, len(data))
        model.to(site.device)
        self._stream_metrics(site, experiment, model, fl_ctx, abort_signal, number)
        run = train_locally(
            model,
            RawImages(data.images, data.labels),
            settings,
            generator_for(experiment.seed, "train", site.name, number),
            aborted=lambda: abort_signal.triggered,
        )
        after = state_copy(model)
        torch.save(after, site.job_folder / LOCAL_MODEL)
        remember_round(site.job_folder, RoundRecord(number, run.images_seen, len(run.batches)))
        mean_loss = sum(run.losses) / len(run.losses)
        stream_scalars(
            fl_ctx,
            self.analytics_sender_id,
            "train",
            {"loss": mean_loss, "steps": float(len(run.batches))},
            number,
        )
        self.log_info(
            fl_ctx,
            f"round {number}: {len(run.batches)} steps on {site.device}, loss {mean_loss:.4f}",
        )
        return DXO(
            DataKind.WEIGHT_DIFF,
            data=as_arrays(state_difference(after, before)),
            meta={MetaKey.NUM_STEPS_CURRENT_ROUND: len(run.batches)},
        ).to_shareable()

    def _validate(
        self, site: Site, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        experiment = experiment_of(fl_ctx, self.experiment_id)
        model = experiment.build_model()
        load_global_state(model, read_dxo(shareable, DataKind.WEIGHTS).data)
        data = self._split(site, experiment, "testing")
        metrics = evaluate(
            model.to(site.device),
            data.images,
            data.labels,
            aborted=lambda: abort_signal.triggered,
        )
        return DXO(DataKind.METRICS, data=metrics).to_shareable()

    def _submit_model(
        self, site: Site, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        file = site.job_folder / LOCAL_MODEL
        if not file.is_file():
            self.log_error(fl_ctx, "there is no local model yet; 'train' comes first")
            return make_reply(ReturnCode.EXECUTION_RESULT_ERROR)
        state = torch.load(file, weights_only=True)
        return DXO(DataKind.WEIGHTS, data=as_arrays(state)).to_shareable()

    def _split(self, site: Site, experiment: Experiment, split: str) -> ImageSet:
        if split not in self._splits:
            self._splits[split] = experiment.load_split(site, split)
        return self._splits[split]

    @staticmethod
    def _check_batches(
        model: nn.Module, experiment: Experiment, settings: TrainingSettings, n_images: int
    ) -> None:
        smallest = n_images % settings.batch_size or min(settings.batch_size, n_images)
        check_trainable(
            model,
            image_size=experiment.image_size,
            in_channels=experiment.channels,
            batch_size=smallest,
        )

    def _stream_metrics(
        self,
        site: Site,
        experiment: Experiment,
        model: nn.Module,
        fl_ctx: FLContext,
        abort_signal: Signal,
        number: int,
    ) -> None:
        """Measure the received global model on the site's validation images."""
        data = self._split(site, experiment, "validation")
        metrics = evaluate(model, data.images, data.labels, aborted=lambda: abort_signal.triggered)
        stream_scalars(fl_ctx, self.analytics_sender_id, "valid", metrics, number)
