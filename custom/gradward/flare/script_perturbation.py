"""Perturbed images for a training script of the Client API, and the receipt for its update."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants

from gradward.client import IMAGES_VARIABLE, USED_META
from gradward.data import DataError
from gradward.defenses.noise import load_secret
from gradward.defenses.storage import save_private
from gradward.flare.experiment import JobError, experiment_of, find_component
from gradward.flare.perturber import PERTURBATION_ERRORS, Perturbation
from gradward.flare.private_folder import open_private_folders
from gradward.flare.receipt import (
    RECEIPT_META,
    Assignment,
    Receipt,
    identify_task,
    note_assignment,
    state_digest,
    tensor_digests,
)
from gradward.flare.rounds import RoundRecord, remember_round
from gradward.flare.site import Site, SiteSettingsError, open_site, record_private_error
from gradward.flare.states import MessageError, as_arrays, as_tensor, local_change, read_dxo
from gradward.training import State

IMAGES_FILE = "script_images.pt"

# What a person can mend, told in one line.
_EXPECTED = (DataError, JobError, MessageError, SiteSettingsError, *PERTURBATION_ERRORS)
_HANDED_OUT = "gradward_handed_out"


@dataclass(frozen=True)
class _HandedOut:
    """The images of one training task, and what it started from."""

    assignment: Assignment
    token: str
    mode: str
    version: str


class ScriptPerturbation(FLComponent):
    """Does for a script what ``LocalTrainer`` does by itself.

    Before each training task the site's perturber makes the images that
    :func:`gradward.client.perturbed_images` returns, within the site's own limits. After it, the
    reply becomes the difference to the received weights, with a receipt for the site's guard. An
    update that does not come with the mark of this task's images does not leave. A script that
    trains on other images as well is not found out: like the guard, this protects against mistakes
    and wrong configuration, not against code that was written to deceive.
    """

    def __init__(
        self,
        train_task: str = AppConstants.TASK_TRAIN,
        experiment_id: str = "experiment",
        perturbation_id: str = "perturbation",
    ) -> None:
        """Name the task and the job's components.

        Args:
            train_task: name of the training task.
            experiment_id: id of the :class:`~gradward.flare.experiment.Experiment`.
            perturbation_id: id of the :class:`~gradward.flare.perturber.Perturbation`; a site that
                it does not perturb trains as its script likes.
        """
        super().__init__()
        self.train_task = train_task
        self.experiment_id = experiment_id
        self.perturbation_id = perturbation_id

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Follow the training task."""
        if event_type == EventType.ABOUT_TO_START_RUN:
            # Before the executors start the script.
            os.environ[IMAGES_VARIABLE] = str(open_private_folders(fl_ctx)[1] / IMAGES_FILE)
        elif fl_ctx.get_prop(FLContextKey.TASK_NAME) != self.train_task:
            return
        elif event_type == EventType.BEFORE_TASK_EXECUTION:
            self._prepare(fl_ctx)
        elif event_type == EventType.AFTER_TASK_EXECUTION:
            self._finish(fl_ctx)

    def _prepare(self, fl_ctx: FLContext) -> None:
        site: Site | None = None
        try:
            # What was made for an earlier task must not serve this one.
            file = open_private_folders(fl_ctx)[1] / IMAGES_FILE
            file.unlink(missing_ok=True)
            os.environ[IMAGES_VARIABLE] = str(file)
            site = open_site(fl_ctx)
            site.apply_threads()
            self._hand_out(site, fl_ctx)
        except _EXPECTED as error:
            self.log_error(fl_ctx, f"there are no images for the script: {error}")
        except Exception as error:
            self._fail(site, fl_ctx, "making images for the script", error)

    def _hand_out(self, site: Site, fl_ctx: FLContext) -> None:
        if site.certified.required:
            raise JobError(
                "a script's training has no certificate, which this site demands; train with "
                "LocalTrainer"
            )
        task = fl_ctx.get_prop(FLContextKey.TASK_DATA)
        number = int(task.get_header(AppConstants.CURRENT_ROUND, 0))
        assignment = Assignment(number, dict(read_dxo(task, DataKind.WEIGHTS).data))
        note_assignment(fl_ctx, assignment)
        handed_out = _HandedOut(assignment, token="", mode="", version="")
        experiment = experiment_of(fl_ctx, self.experiment_id)
        perturbation = find_component(fl_ctx, self.perturbation_id, Perturbation)
        images = experiment.load_split(site, "training")
        perturbed = perturbation.open(site, experiment, images, fl_ctx, number)
        if perturbed is not None:
            token = secrets.token_hex(16)
            batch = perturbed.source.batch(range(len(perturbed.source)))
            perturbed.source.keep(site.job_folder, number, perturbed.mode, images)
            content = {"images": batch.images, "labels": batch.labels, "token": token}
            save_private(site.job_folder / IMAGES_FILE, content)
            handed_out = _HandedOut(assignment, token, perturbed.mode, perturbed.version)
        fl_ctx.set_prop(_HANDED_OUT, handed_out, private=True, sticky=False)

    def _finish(self, fl_ctx: FLContext) -> None:
        """Put the difference and its receipt in the place of the script's reply, or an error."""
        result = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        if not isinstance(result, Shareable) or result.get_return_code() != ReturnCode.OK:
            return
        # NVFlare goes on with this very object, whatever the event sets in its context.
        reply: Mapping[str, Any] = make_reply(ReturnCode.EXECUTION_EXCEPTION)
        site: Site | None = None
        try:
            site = open_site(fl_ctx)
            reply = self._signed(site, result, fl_ctx)
        except _EXPECTED as error:
            self.log_error(fl_ctx, f"the script's update does not leave: {error}")
        except Exception as error:
            self._fail(site, fl_ctx, "signing for the script's update", error)
        finally:
            content = dict(reply)
            result.clear()
            result.update(content)

    def _signed(self, site: Site, result: Shareable, fl_ctx: FLContext) -> Shareable:
        handed_out = fl_ctx.get_prop(_HANDED_OUT)
        if not isinstance(handed_out, _HandedOut):
            raise MessageError("there were no images for it")
        dxo = read_dxo(result, DataKind.WEIGHTS, DataKind.WEIGHT_DIFF)
        steps, samples = _claimed(dxo, handed_out.token)
        update = as_arrays(self._update(dxo, handed_out.assignment, fl_ctx))
        number = handed_out.assignment.round
        meta: dict[str, Any] = {MetaKey.NUM_STEPS_CURRENT_ROUND: steps}
        if handed_out.token:
            # Which of the site's images these are views of, the script's loader knows alone.
            remember_round(site.job_folder, RoundRecord(number, images=None, steps=steps))
            meta[RECEIPT_META] = Receipt(
                **identify_task(fl_ctx),
                round=number,
                model=state_digest(handed_out.assignment.received),
                mode=handed_out.mode,
                version=handed_out.version,
                raw_samples=0,
                perturbed_samples=samples,
                steps=steps,
                tensors=tensor_digests(update),
            ).sign(load_secret(site.private))
        return DXO(DataKind.WEIGHT_DIFF, data=update, meta=meta).to_shareable()

    def _update(self, dxo: DXO, assignment: Assignment, fl_ctx: FLContext) -> State:
        """Return the change in the types of the job's model."""
        model = experiment_of(fl_ctx, self.experiment_id).build_model().state_dict()
        if set(dxo.data) != set(model):
            raise MessageError("its tensors are not those of the job's model")
        before = {name: as_tensor(value) for name, value in assignment.received.items()}
        whole = dxo.data_kind == DataKind.WEIGHTS
        change = local_change(dxo.data, before, is_whole_model=whole)
        for name, value in change.items():
            exact = value if model[name].is_floating_point() else value.round()
            change[name] = exact.to(model[name].dtype)
        return change

    def _fail(self, site: Site | None, fl_ctx: FLContext, doing: str, error: Exception) -> None:
        # An unforeseen error may have images or names in its traceback.
        if site is not None:
            record_private_error(site)
        self.log_error(fl_ctx, f"{doing} failed with {type(error).__name__}")


def _claimed(dxo: DXO, token: str) -> tuple[int, int]:
    """Return the steps and samples of an update that was made from these images."""
    used = dxo.get_meta_prop(USED_META)
    steps = dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, 1)
    if type(steps) is not int or steps < 1:
        raise MessageError("it does not say how many steps it took")
    if not token:
        return steps, 0
    if not isinstance(used, dict) or used.get("token") != token:
        raise MessageError(
            "it was not trained on the perturbed images of this task; the script must call "
            "gradward.client.perturbed_images() after each receive and send their meta(steps)"
        )
    samples = used.get("samples")
    if type(samples) is not int or samples < 1:
        raise MessageError("it was trained on no perturbed images")
    return steps, samples
