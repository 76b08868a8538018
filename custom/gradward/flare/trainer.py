"""Local training on a site."""

from __future__ import annotations

import math

from nvflare.apis.dxo import DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from torch import nn

from gradward.data import DataError, ImageSet, PublicSet
from gradward.flare.analytics import stream_scalars
from gradward.flare.canary import CANARY_TASK
from gradward.flare.canary_training import train_on_canaries
from gradward.flare.certificate import declare_run, may_be_measured, require_mechanism
from gradward.flare.dp_account import spend_round
from gradward.flare.experiment import Experiment, JobError, experiment_of, find_component
from gradward.flare.local_round import LocalRound
from gradward.flare.perturber import PERTURBATION_ERRORS, Perturbation
from gradward.flare.receipt import ReceiptError
from gradward.flare.results import local_model_result, metrics_result, training_result
from gradward.flare.seeds import generator_for
from gradward.flare.site import Site, SiteSettingsError, open_site, record_private_error
from gradward.flare.states import MessageError, load_global_state, read_dxo
from gradward.metrics.classification import evaluate
from gradward.models import ModelError
from gradward.training import (
    RawBatchRefused,
    RawImages,
    TooFewImages,
    TrainingAborted,
    TrainingSettings,
)

# What a person can mend: told in one line, without a traceback that could name files.
EXPECTED_ERRORS = (
    DataError,
    JobError,
    ModelError,
    MessageError,
    SiteSettingsError,
    ReceiptError,
    RawBatchRefused,
    TooFewImages,
    FloatingPointError,
    *PERTURBATION_ERRORS,
)


class LocalTrainer(Executor):
    """Answers ``train``, ``validate`` and ``submit_model`` with the site's own data.

    Where a canary audit asks for ``canary_update``, the same executor answers it with public images
    (:mod:`gradward.flare.canary_training`): a canary cannot be better defended than the training.

    A ``train`` reply is a ``WEIGHT_DIFF`` with BatchNorm buffers, the number of local steps and a
    :class:`~gradward.flare.receipt.Receipt`. With a perturbation every batch of the training comes
    from the site's perturber; evaluation stays on clean images.
    """

    def __init__(
        self,
        experiment_id: str = "experiment",
        analytics_sender_id: str = "analytics_sender",
        perturbation_id: str | None = None,
        train_task: str = AppConstants.TASK_TRAIN,
        validate_task: str = AppConstants.TASK_VALIDATION,
        submit_model_task: str = AppConstants.TASK_SUBMIT_MODEL,
    ) -> None:
        """Name the job's components and the three tasks.

        Args:
            experiment_id: id of the :class:`~gradward.flare.experiment.Experiment`.
            analytics_sender_id: id of NVFlare's ``AnalyticsSender``.
            perturbation_id: id of the :class:`~gradward.flare.perturber.Perturbation`; None trains
                on raw images, unless the site's settings forbid it.
            train_task, validate_task, submit_model_task: names of the tasks.
        """
        super().__init__()
        self.experiment_id = experiment_id
        self.analytics_sender_id = analytics_sender_id
        self.perturbation_id = perturbation_id
        self.train_task = train_task
        self.validate_task = validate_task
        self.submit_model_task = submit_model_task
        self._splits: dict[str, ImageSet] = {}
        self._public: PublicSet | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Forget data of an earlier run in the same process."""
        if event_type == EventType.START_RUN:
            self._splits.clear()
            self._public = None

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Carry out a task; a site that cannot says why and leaves the others alone."""
        tasks = {
            self.train_task: self._train,
            self.validate_task: self._validate,
            self.submit_model_task: self._submit_model,
            CANARY_TASK: self._train_canary,
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
        data = self._split(site, experiment, "training")
        local = LocalRound.begin(site, experiment, shareable, fl_ctx, len(data))
        number, settings = local.number, local.settings
        perturbation = self._perturbation(site, settings, fl_ctx)
        perturbed = None
        if perturbation is not None:
            perturbed = perturbation.open(site, experiment, data, fl_ctx, number)
        if declared := declare_run(site, settings, perturbed, data):
            self.log_info(fl_ctx, declared)
        if settings.dp_sgd is not None:
            spent = {"epsilon": spend_round(site.job_folder, settings, len(data))}
            if not site.certified.required:
                # It tells how many images there are; the certificate states the job's.
                stream_scalars(fl_ctx, self.analytics_sender_id, "defense", spent, number)
        metrics = self._measure(site, experiment, local.model, "validation", abort_signal)
        stream_scalars(fl_ctx, self.analytics_sender_id, "valid", metrics or {}, number)
        run = local.train(
            RawImages(data.images, data.labels) if perturbed is None else perturbed.source,
            generator_for(experiment.seed, "train", site.name, number),
            aborted=lambda: abort_signal.triggered,
            perturbed_only=perturbed is not None,
        )
        if perturbed is not None:
            perturbed.source.keep(site.job_folder, number, perturbed.mode, data)
        # DP-SGD may draw no image in a whole round.
        mean_loss = sum(run.losses) / len(run.losses) if run.losses else math.nan
        told = {"steps": float(len(run.batches))}
        if settings.dp_sgd is None:
            # The loss on its training images is no part of what epsilon was paid for.
            told["loss"] = mean_loss
        stream_scalars(fl_ctx, self.analytics_sender_id, "train", told, number)
        # A job may have NVFlare stream the log to the server.
        figures = "".join(f", {name} {value:.4g}" for name, value in told.items())
        self.log_info(fl_ctx, f"round {number} trained on {site.device}{figures}")
        return training_result(fl_ctx, local, run, perturbed)

    def _train_canary(
        self, site: Site, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        experiment = experiment_of(fl_ctx, self.experiment_id)
        if self._public is None:
            self._public = experiment.load_public(site)
        n_images = len(self._split(site, experiment, "training"))
        settings = experiment.settings_for(site.name)
        return train_on_canaries(
            site,
            experiment,
            shareable,
            fl_ctx,
            public=self._public,
            n_images=n_images,
            perturbation=self._perturbation(site, settings, fl_ctx),
            aborted=lambda: abort_signal.triggered,
        )

    def _validate(
        self, site: Site, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        experiment = experiment_of(fl_ctx, self.experiment_id)
        model = experiment.build_model()
        load_global_state(model, read_dxo(shareable, DataKind.WEIGHTS).data)
        metrics = self._measure(site, experiment, model, "testing", abort_signal)
        if metrics is None:
            raise JobError(
                "metrics on clean images are closed: a held-out patient is trained on as well, or "
                f"fewer stand behind them than this site's {site.certified.min_patients}; hold out "
                "more patients, or leave the task out of the job"
            )
        return metrics_result(fl_ctx, self.validate_task, metrics)

    def _submit_model(
        self, site: Site, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        reply = local_model_result(fl_ctx, site)
        if reply is None:
            self.log_error(fl_ctx, "there is no local model yet; 'train' comes first")
            return make_reply(ReturnCode.EXECUTION_RESULT_ERROR)
        return reply

    def _perturbation(
        self, site: Site, settings: TrainingSettings, fl_ctx: FLContext
    ) -> Perturbation | None:
        if self.perturbation_id is None:
            require_mechanism(site, settings, None)
            if site.perturbation.required:
                raise JobError(
                    "this site trains on perturbed images only, but the job's trainer names no "
                    "'perturbation_id'; add a Perturbation and name it"
                )
            return None
        perturbation = find_component(fl_ctx, self.perturbation_id, Perturbation)
        planned = perturbation.settings_for(site.name)
        require_mechanism(site, settings, None if planned is None else planned.mode)
        return perturbation

    def _split(self, site: Site, experiment: Experiment, split: str) -> ImageSet:
        if split not in self._splits:
            self._splits[split] = experiment.load_split(site, split)
        return self._splits[split]

    def _measure(
        self,
        site: Site,
        experiment: Experiment,
        model: nn.Module,
        split: str,
        abort_signal: Signal,
    ) -> dict[str, float] | None:
        """Measure a received model on clean images; None where that may not leave."""
        data = self._split(site, experiment, split)
        if not may_be_measured(site, data, self._split(site, experiment, "training")):
            return None
        return evaluate(
            model.to(site.device), data.images, data.labels, aborted=lambda: abort_signal.triggered
        )
