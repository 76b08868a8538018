"""What a site knows of a round whose trainer is somebody else's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from gradward.data import load_public_set, load_split
from gradward.flare.protocol import SCORE_TASK, ScoreReply, ScoreRequest
from gradward.flare.rounds import RoundRecord, remember_round
from gradward.flare.scorer import LeakageScorer
from gradward.flare.witness import TrainingWitness

from .fake_engine import context
from .flare_desk import experiment

SIZE: dict[str, Any] = {"image_size": (32, 32), "channels": 3}
UPDATE = DXO(DataKind.WEIGHTS, data={"weight": np.ones(3)}).to_shareable()


def site_2(root: Path) -> FLContext:
    return context(root, {"experiment": experiment()}, "site-2")


def train(
    root: Path, number: Any, result: Shareable = UPDATE, task: str = "train", **witness: Any
) -> None:
    """Fire the events of one task as NVFlare's client runner does."""
    fl_ctx = site_2(root)
    order = Shareable()
    order.set_header(AppConstants.CURRENT_ROUND, number)
    component = TrainingWitness(**witness)
    fl_ctx.set_prop(FLContextKey.TASK_NAME, task, private=True, sticky=False)
    fl_ctx.set_prop(FLContextKey.TASK_DATA, order, private=True, sticky=False)
    component.handle_event(EventType.BEFORE_TASK_EXECUTION, fl_ctx)
    fl_ctx.set_prop(FLContextKey.TASK_DATA, None, private=True, sticky=False)
    fl_ctx.set_prop(FLContextKey.TASK_RESULT, result, private=True, sticky=False)
    component.handle_event(EventType.AFTER_TASK_RESULT_FILTER, fl_ctx)


def ask(root: Path, images: np.ndarray, number: int = 0) -> ScoreReply:
    public = load_public_set({"format": "embedded"}, name="histology", **SIZE)
    request = ScoreRequest("site-2", number, "matching", images, None, public.checksum)
    answer = LeakageScorer().execute(SCORE_TASK, request.to_shareable(), site_2(root), Signal())
    return ScoreReply.from_shareable(answer)


def rounds(root: Path) -> dict[str, Any]:
    folder = root / "gradward" / "jobs" / "job-1" / "rounds"
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def test_a_round_that_was_trained_in_is_noted_without_its_images(tmp_path: Path) -> None:
    train(tmp_path, 4)
    assert rounds(tmp_path) == {"4": {"round": 4, "images": None, "steps": None}}


@pytest.mark.parametrize(
    "case",
    [
        {"number": 0, "result": make_reply(ReturnCode.EXECUTION_EXCEPTION)},
        {"number": 0, "result": make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR)},
        {"number": 0, "result": Shareable()},
        {"number": 0, "result": DXO(DataKind.METRICS, data={"auc": 0.5}).to_shareable()},
        {"number": 0, "task": "validate"},
        {"number": 0, "train_task": "fit"},
        {"number": None},
        {"number": "../../secret"},
        {"number": -1},
        {"number": True},
        {"number": 10**9},
    ],
)
def test_nothing_else_counts_as_training(case: dict[str, Any], tmp_path: Path) -> None:
    train(tmp_path, **case)
    assert rounds(tmp_path) == {}
    assert not list(tmp_path.rglob("secret*"))


def test_what_our_own_trainer_noted_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "gradward" / "jobs" / "job-1"
    folder.mkdir(parents=True)
    remember_round(folder, RoundRecord(0, images=[3, 1], steps=2))
    train(tmp_path, 0)
    assert rounds(tmp_path)["0"]["images"] == [3, 1]


def test_the_scoring_task_cannot_be_called_a_training(tmp_path: Path) -> None:
    for name in (SCORE_TASK, "", None):
        with pytest.raises(ValueError, match="train_task"):
            TrainingWitness(train_task=name)


def test_a_round_that_never_was_is_refused_whatever_the_server_says(tmp_path: Path) -> None:
    train(tmp_path, 0)
    reply = ask(tmp_path, np.full((1, 3, 32, 32), 0.5, np.float32), number=1)
    assert reply.status == "refused" and reply.membership is None


def test_any_image_of_the_site_counts_as_a_hit_and_the_answer_says_so(tmp_path: Path) -> None:
    """The pictures are images 20 and 5 themselves: a perfect reconstruction must find them."""
    train(tmp_path, 0)
    images = load_split({"format": "embedded"}, "training", site="site-2", **SIZE).images
    reply = ask(tmp_path, images[[20, 5]].numpy())
    assert reply.status == "ok" and reply.membership == "unknown"
    assert reply.real is not None and reply.real["n_images"] == 2
    assert reply.real["ssim"] == reply.real["recovered"] == reply.real["reid"] == 1


def test_an_answer_about_known_images_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "gradward" / "jobs" / "job-1"
    folder.mkdir(parents=True)
    remember_round(folder, RoundRecord(0, images=[7], steps=1))
    images = load_split({"format": "embedded"}, "training", site="site-2", **SIZE).images
    reply = ask(tmp_path, images[[20]].numpy())
    assert reply.membership == "known"
    assert reply.real is not None and reply.real["ssim"] < 0.9, "image 20 is not of the round"
