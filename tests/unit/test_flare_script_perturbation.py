"""A training script that trains on perturbed images, and one that forgets to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants
from torch.utils.data import DataLoader

from gradward.client import IMAGES_VARIABLE, NoPerturbedImages, perturbed_images
from gradward.flare.guard import PerturbationGuard
from gradward.flare.perturber import Perturbation
from gradward.flare.script_perturbation import ScriptPerturbation
from gradward.flare.states import as_arrays
from gradward.training import state_copy

from .flare_desk import Desk, experiment

SITE = "site-4"  # 16 images


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.delenv(IMAGES_VARIABLE, raising=False)
    yield Desk(tmp_path, experiment())
    monkeypatch.delenv(IMAGES_VARIABLE, raising=False)


def weights(desk: Desk) -> dict[str, np.ndarray]:
    return as_arrays(state_copy(desk.job.build_model()))


def begin(desk: Desk, number: int = 0, task_id: str = "task-1") -> FLContext:
    """Let a training task arrive, as NVFlare's client runner does."""
    order = DXO(DataKind.WEIGHTS, data=weights(desk)).to_shareable()
    order.set_header(AppConstants.CURRENT_ROUND, number)
    fl_ctx = desk.task("train", task_id)
    fl_ctx.set_prop(FLContextKey.TASK_DATA, order, private=True, sticky=False)
    ScriptPerturbation().handle_event(EventType.BEFORE_TASK_EXECUTION, fl_ctx)
    fl_ctx.set_prop(FLContextKey.TASK_DATA, None, private=True, sticky=False)
    return fl_ctx


def end(fl_ctx: FLContext, reply: Shareable) -> Shareable:
    """Let the reply pass what comes before it leaves; the guard last."""
    reply.set_header("left by the client API", 1)
    fl_ctx.set_prop(FLContextKey.TASK_RESULT, reply, private=True, sticky=False)
    ScriptPerturbation().handle_event(EventType.AFTER_TASK_EXECUTION, fl_ctx)
    return PerturbationGuard().process(reply, fl_ctx)


def trained(desk: Desk) -> dict[str, np.ndarray]:
    after = weights(desk)
    return {name: value + value.dtype.type(1) for name, value in after.items()}


def reply_of(desk: Desk, meta: Mapping[str, Any]) -> Shareable:
    return DXO(DataKind.WEIGHTS, data=trained(desk), meta=dict(meta)).to_shareable()


def script(desk: Desk) -> Shareable:
    """The two lines, in a script."""
    images = perturbed_images()
    steps = 0
    for _ in DataLoader(images, batch_size=8, num_workers=0):
        steps += 1
    return reply_of(desk, images.meta(steps))


def test_an_update_of_perturbed_images_passes_the_guard_as_a_difference(desk: Desk) -> None:
    sent = end(begin(desk), script(desk))
    assert sent.get_return_code() == ReturnCode.OK
    dxo = from_shareable(sent)
    assert dxo.data_kind == DataKind.WEIGHT_DIFF
    assert all(np.allclose(value, 1, atol=1e-6) for value in dxo.data.values())
    assert dxo.get_meta_prop("perturbed_samples") == 16
    assert dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND) == 2
    assert "token" not in str(dxo.meta), "nothing but counts and the mode leaves"


def test_the_script_sees_no_image_of_the_site(desk: Desk) -> None:
    begin(desk)
    images = torch.stack([image for image, _ in perturbed_images()])
    assert (images.amax((1, 2, 3)) == images.amin((1, 2, 3))).all(), "they are even ones"


def test_every_worker_of_a_loader_is_counted(desk: Desk) -> None:
    begin(desk)
    images = perturbed_images()
    assert sum(len(labels) for _, labels in DataLoader(images, num_workers=2)) == 16
    assert images.meta(1)["gradward_used"]["samples"] == 16


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"gradward_used": {"token": "0" * 32, "samples": 5}},
        {"gradward_used": None},
        {"gradward_used": "token"},
    ],
)
def test_an_update_without_the_mark_of_its_images_does_not_leave(
    desk: Desk, meta: dict[str, Any]
) -> None:
    fl_ctx = begin(desk)
    reply = reply_of(desk, {MetaKey.NUM_STEPS_CURRENT_ROUND: 2} | meta)
    fl_ctx.set_prop(FLContextKey.TASK_RESULT, reply, private=True, sticky=False)
    ScriptPerturbation().handle_event(EventType.AFTER_TASK_EXECUTION, fl_ctx)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "DXO" not in reply, "also where a job has no guard"


def test_images_of_an_earlier_task_do_not_serve(desk: Desk) -> None:
    begin(desk)
    old = script(desk)
    sent = end(begin(desk, number=1, task_id="task-2"), old)
    assert sent.get_return_code() != ReturnCode.OK and "DXO" not in sent


def test_a_site_that_the_job_does_not_perturb_trains_as_its_script_likes(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.components["perturbation"] = Perturbation(per_site={"site-9": {"mode": "class"}})
    fl_ctx = begin(desk)
    with pytest.raises(NoPerturbedImages):
        perturbed_images()
    reply = reply_of(desk, {MetaKey.NUM_STEPS_CURRENT_ROUND: 2})
    fl_ctx.set_prop(FLContextKey.TASK_RESULT, reply, private=True, sticky=False)
    ScriptPerturbation().handle_event(EventType.AFTER_TASK_EXECUTION, fl_ctx)
    assert from_shareable(reply).data_kind == DataKind.WEIGHT_DIFF
    again = PerturbationGuard().process(reply, fl_ctx)
    assert again.get_return_code() != ReturnCode.OK, "a guard lets it not pass all the same"


def test_the_sites_own_limits_hold(desk: Desk) -> None:
    desk.components["perturbation"] = Perturbation(per_site={"site-9": {"mode": "class"}})
    desk.settings(perturbation={"required": True})
    fl_ctx = begin(desk)
    with pytest.raises(NoPerturbedImages):
        perturbed_images()
    sent = end(fl_ctx, reply_of(desk, {MetaKey.NUM_STEPS_CURRENT_ROUND: 2}))
    assert sent.get_return_code() != ReturnCode.OK and "DXO" not in sent


def test_a_failure_leaves_no_images_of_the_task_before(desk: Desk) -> None:
    begin(desk)
    assert len(perturbed_images()) == 16
    del desk.components["experiment"]
    fl_ctx = desk.task("train", "task-2")
    order = DXO(DataKind.WEIGHTS, data={}).to_shareable()
    fl_ctx.set_prop(FLContextKey.TASK_DATA, order, private=True, sticky=False)
    ScriptPerturbation().handle_event(EventType.BEFORE_TASK_EXECUTION, fl_ctx)
    with pytest.raises(NoPerturbedImages, match=r"after flare\.receive"):
        perturbed_images()


def test_an_error_of_the_script_stays_an_error(desk: Desk) -> None:
    fl_ctx = begin(desk)
    sent = end(fl_ctx, make_reply(ReturnCode.TASK_ABORTED))
    assert sent.get_return_code() != ReturnCode.OK


def test_meta_before_any_training_is_refused(desk: Desk) -> None:
    begin(desk)
    images = perturbed_images()
    with pytest.raises(NoPerturbedImages, match="no perturbed image was used"):
        images.meta(3)
    with pytest.raises(ValueError, match="steps"):
        images.meta(0)
