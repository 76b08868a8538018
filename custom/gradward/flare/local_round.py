"""One round of local training at a site, whatever images it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from nvflare.apis.dxo import DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants
from torch import nn

from gradward.flare.certificate import banded
from gradward.flare.experiment import Experiment
from gradward.flare.receipt import Assignment, note_assignment
from gradward.flare.rounds import RoundRecord, remember_round
from gradward.flare.seeds import secret_generator
from gradward.flare.site import Site
from gradward.flare.states import load_global_state, read_dxo
from gradward.models import check_trainable
from gradward.training import (
    BatchSource,
    LocalRun,
    State,
    TrainingSettings,
    state_copy,
    train_locally,
)


@dataclass(frozen=True)
class LocalRound:
    """The pipeline that training and canary share: what leaks from one leaks from the other.

    Attributes:
        site: whose folders keep the record of the round.
        settings: the site's hyperparameters; under a certificate with a banded number of steps.
        assignment: what the server sent.
        model: in the received state, on the site's device; trained in place.
        before: the received state.
    """

    site: Site
    settings: TrainingSettings
    assignment: Assignment
    model: nn.Module
    before: State

    @classmethod
    def begin(
        cls,
        site: Site,
        experiment: Experiment,
        shareable: Shareable,
        fl_ctx: FLContext,
        n_images: int,
    ) -> LocalRound:
        """Take an order to train.

        Args:
            site: that trains.
            experiment: of the job.
            shareable: the order: global weights and the number of the round.
            fl_ctx: of the task; the assignment is noted in it for the filters.
            n_images: how many images the site has.

        Raises:
            MessageError: the weights are those of another model.
            ModelError: the model cannot train on the site's batches.
        """
        settings = experiment.settings_for(site.name)
        if site.certified.required:
            settings = banded(settings, n_images)
        number = int(shareable.get_header(AppConstants.CURRENT_ROUND, 0))
        model = experiment.build_model()
        assignment = Assignment(number, read_dxo(shareable, DataKind.WEIGHTS).data)
        note_assignment(fl_ctx, assignment)
        before = load_global_state(model, assignment.received)
        check_trainable(
            model,
            image_size=experiment.image_size,
            in_channels=experiment.channels,
            batch_size=settings.smallest_batch(n_images),
        )
        return cls(site, settings, assignment, model.to(site.device), before)

    @property
    def number(self) -> int:
        """Number of the round."""
        return self.assignment.round

    @property
    def after(self) -> State:
        """The state of the model as it is now."""
        return state_copy(self.model)

    def train(
        self,
        source: BatchSource,
        generator: torch.Generator,
        *,
        aborted: Callable[[], bool],
        perturbed_only: bool,
    ) -> LocalRun:
        """Train and put on record which images were used; see :func:`train_locally`."""
        run = train_locally(
            self.model,
            source,
            self.settings,
            generator,
            aborted=aborted,
            perturbed_only=perturbed_only,
            secret=secret_generator(),
        )
        record = RoundRecord(self.number, run.images_seen, len(run.batches))
        remember_round(self.site.job_folder, record)
        return run
