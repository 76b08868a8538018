"""Trainer and scorer as NVFlare calls them, on the embedded pictures."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from gradward.data import load_public_set, load_split
from gradward.flare.experiment import Experiment
from gradward.flare.protocol import SCORE_TASK, ScoreReply, ScoreRequest
from gradward.flare.scorer import LeakageScorer
from gradward.flare.states import as_arrays
from gradward.flare.trainer import LocalTrainer
from gradward.training import state_copy

from .fake_engine import context

SIZE = {"image_size": (32, 32), "channels": 3}


def experiment(**changes: object) -> Experiment:
    values = {
        "model": "bn_cnn",
        "dataset": "histology",
        "image_size": [32, 32],
        "channels": 3,
        "num_classes": 2,
        "training": {"batch_size": 8, "lr": 0.02},
        "per_site": {"site-1": {"batch_size": 1}},
        "seed": 7,
    }
    return Experiment(**(values | changes))


def ask(
    fl_ctx: FLContext,
    task: str,
    job: Experiment,
    number: int = 0,
    signal: Signal | None = None,
    trainer: LocalTrainer | None = None,
    **changed: object,
) -> Shareable:
    weights = as_arrays(state_copy(job.build_model())) | changed
    shareable = DXO(DataKind.WEIGHTS, data=weights).to_shareable()
    shareable.set_header(AppConstants.CURRENT_ROUND, number)
    return (trainer or LocalTrainer()).execute(task, shareable, fl_ctx, signal or Signal())


@pytest.fixture
def job() -> Experiment:
    return experiment()


@pytest.fixture
def site_1(tmp_path: Path, job: Experiment) -> FLContext:
    return context(tmp_path, {"experiment": job})


def test_update_is_the_difference_with_buffers_and_steps(tmp_path: Path, job: Experiment) -> None:
    reply = ask(context(tmp_path, {"experiment": job}, "site-2"), "train", job)
    dxo = from_shareable(reply)
    assert dxo.data_kind == DataKind.WEIGHT_DIFF
    assert dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND) == 4, "32 images, batches of 8"
    counters = [v for name, v in dxo.data.items() if name.endswith("num_batches_tracked")]
    assert counters and all(int(value) == 4 for value in counters)
    assert any(
        name.endswith("running_mean") and np.abs(v).sum() > 0 for name, v in dxo.data.items()
    )


def test_the_same_round_gives_the_same_update_from_a_new_executor(
    site_1: FLContext, job: Experiment
) -> None:
    first, second, later = (from_shareable(ask(site_1, "train", job, n)).data for n in (0, 0, 1))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert later.keys() == first.keys()


def test_fractional_counters_of_an_average_are_rounded(site_1: FLContext, job: Experiment) -> None:
    name = next(n for n in job.build_model().state_dict() if n.endswith("num_batches_tracked"))
    reply = ask(site_1, "train", job, **{name: np.float64(2.6)})
    assert int(from_shareable(reply).data[name]) == 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"foreign": np.zeros(3)}, "another model"),
        ({"conv": np.zeros(3)}, "another model"),
    ],
)
def test_weights_of_another_model_are_refused(
    site_1: FLContext,
    job: Experiment,
    changed: dict[str, object],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        reply = ask(site_1, "train", job, **changed)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert words in caplog.text


def test_an_aborted_task_says_so(site_1: FLContext, job: Experiment) -> None:
    signal = Signal()
    signal.trigger("abort")
    reply = ask(site_1, "train", job, signal=signal)
    assert reply.get_return_code() == ReturnCode.TASK_ABORTED


def test_a_model_that_cannot_train_on_one_small_image_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = experiment(model="densenet121")
    reply = ask(context(tmp_path, {"experiment": job}), "train", job)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "batch" in caplog.text and "larger images" in caplog.text


def test_a_job_without_experiment_is_told(
    tmp_path: Path, job: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    reply = ask(context(tmp_path, {}), "train", job)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "config_fed_client.json" in caplog.text


def test_an_unforeseen_error_stays_at_home(
    site_1: FLContext,
    job: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def explode(*args: object, **kwargs: object) -> None:
        raise RuntimeError("patient smith.png")

    monkeypatch.setattr("gradward.flare.local_round.train_locally", explode)
    reply = ask(site_1, "train", job)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "smith" not in caplog.text and "RuntimeError" in caplog.text
    assert "smith" in (tmp_path / "gradward" / "jobs" / "job-1" / "errors.log").read_text()


def test_validate_and_submit_model(site_1: FLContext, job: Experiment) -> None:
    metrics = from_shareable(ask(site_1, "validate", job))
    assert metrics.data_kind == DataKind.METRICS
    assert set(metrics.data) == {"accuracy", "balanced_accuracy", "auc"}
    assert ask(site_1, "submit_model", job).get_return_code() != ReturnCode.OK, "nothing yet"
    update = from_shareable(ask(site_1, "train", job)).data
    local = from_shareable(ask(site_1, "submit_model", job))
    assert local.data_kind == DataKind.WEIGHTS
    start = as_arrays(state_copy(job.build_model()))
    for name, value in local.data.items():
        np.testing.assert_allclose(value, start[name] + update[name], rtol=1e-5, atol=1e-6)


def test_an_unknown_task_is_told(site_1: FLContext, job: Experiment) -> None:
    assert ask(site_1, "dream", job).get_return_code() == ReturnCode.TASK_UNKNOWN


# Scoring ------------------------------------------------------------------------------------------


def public_checksum() -> str:
    return load_public_set({"format": "embedded"}, name="histology", **SIZE).checksum


def score(fl_ctx: FLContext, images: torch.Tensor, **changes: object) -> ScoreReply:
    values = {
        "site": "site-1",
        "round": 0,
        "attack": "batchnorm",
        "images": images.numpy(),
        "control": np.full(images.shape, 0.5, np.float32),
        "public_checksum": public_checksum(),
    }
    request = ScoreRequest(**(values | changes))
    reply = LeakageScorer().execute(SCORE_TASK, request.to_shareable(), fl_ctx, Signal())
    return ScoreReply.from_shareable(reply)


@pytest.fixture
def truth() -> torch.Tensor:
    return load_split({"format": "embedded"}, "training", site="site-1", **SIZE).images


def test_a_perfect_reconstruction_is_fully_recovered(
    site_1: FLContext, job: Experiment, truth: torch.Tensor, tmp_path: Path
) -> None:
    ask(site_1, "train", job)
    reply = score(site_1, truth)
    assert reply.status == "ok" and reply.real is not None and reply.control is not None
    assert reply.real["recovered"] == 1.0 and reply.real["reid"] == 1.0
    assert reply.real["gallery"] >= 100
    assert reply.control["reid"] == 0.0
    picture = tmp_path / "gradward" / "jobs" / "job-1" / "pictures" / "round-0-batchnorm.png"
    assert picture.exists() and picture.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"site": "site-2"}, "another site"),
        ({"round": 5}, "no update in round 5"),
        ({"public_checksum": "sha256:1"}, "differ"),
    ],
)
def test_what_is_not_this_sites_own_is_refused(
    site_1: FLContext,
    job: Experiment,
    truth: torch.Tensor,
    changes: dict[str, object],
    reason: str,
    tmp_path: Path,
) -> None:
    ask(site_1, "train", job)
    reply = score(site_1, truth, **changes)
    assert reply.status == "refused" and reason in reply.reason and reply.real is None
    journal = (tmp_path / "gradward" / "jobs" / "job-1" / "answers.log").read_text()
    assert "refused" in journal and "server" in journal


def test_a_second_answer_for_a_round_is_refused(
    site_1: FLContext, job: Experiment, truth: torch.Tensor
) -> None:
    ask(site_1, "train", job)
    assert score(site_1, truth).status == "ok"
    assert score(site_1, truth * 0.99).status == "refused"
