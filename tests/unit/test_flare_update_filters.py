"""The update defences as filters: what they change, and that nothing passes unchanged."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply

from gradward.defenses.storage import load_private
from gradward.defenses.updates import noise_deviation
from gradward.flare.protocol import SCORE_TASK, ScoreReply
from gradward.flare.receipt import RECEIPT_META
from gradward.flare.update_filter import UpdateFilter
from gradward.flare.update_filters import OWED_FILE, UpdateNoise, UpdatePruning, WithholdBuffers
from gradward.training import State

from .fake_engine import context


def update(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "conv.weight": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "bn.weight": rng.normal(size=8).astype(np.float32),
        "bn.running_mean": rng.normal(size=8).astype(np.float32),
        "bn.running_var": rng.normal(size=8).astype(np.float32),
        "bn.num_batches_tracked": np.array(7),
        "fc.bias": rng.normal(size=4).astype(np.float32),
    }


def message(data: dict[str, Any] | None = None, **meta: Any) -> Shareable:
    told = {MetaKey.NUM_STEPS_CURRENT_ROUND: 7} | meta
    return DXO(DataKind.WEIGHT_DIFF, update() if data is None else data, told).to_shareable()


def task(root: Path, name: str = "train") -> FLContext:
    fl_ctx = context(root, {})
    fl_ctx.set_prop(FLContextKey.TASK_NAME, name, private=True, sticky=False)
    return fl_ctx


FILTERS: dict[str, Callable[[], UpdateFilter]] = {
    "noise": lambda: UpdateNoise(0.1),
    "percentile": lambda: UpdatePruning("percentile", percentile=80),
    "dual": lambda: UpdatePruning("dual", largest=0.2, smallest=0.5),
    "buffers": WithholdBuffers,
}


@pytest.fixture(params=FILTERS)
def each(request: pytest.FixtureRequest) -> UpdateFilter:
    return FILTERS[request.param]()


def sent(reply: Shareable) -> dict[str, np.ndarray]:
    dxo = from_shareable(reply)
    assert dxo.data_kind == DataKind.WEIGHT_DIFF
    return dict(dxo.data)


def blocked(reply: Shareable) -> bool:
    """An error reply, and nothing in it but its code."""
    return reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR and set(reply) == {
        ReservedHeaderKey.HEADERS
    }


# What they change ---------------------------------------------------------------------------------


def test_noise_is_calibrated_and_frozen_for_each_update(tmp_path: Path) -> None:
    first, again, other = (
        sent(UpdateNoise(0.5).process(message(update(seed)), task(tmp_path))) for seed in (0, 0, 1)
    )
    before = update()
    tensors = {name: torch.from_numpy(value) for name, value in before.items()}
    sigma = noise_deviation(tensors, 0.5, 95.0)
    noise = {name: value - before[name] for name, value in first.items()}
    assert noise["conv.weight"].std() == pytest.approx(sigma, rel=0.2)
    assert noise["bn.running_mean"].any() and noise["bn.num_batches_tracked"] == 0
    np.testing.assert_array_equal(first["conv.weight"], again["conv.weight"])
    assert not np.allclose(other["conv.weight"] - update(1)["conv.weight"], noise["conv.weight"])


def test_noise_of_another_site_is_another(tmp_path: Path) -> None:
    one, two = (
        sent(UpdateNoise(0.5).process(message(), task(tmp_path / site))) for site in ("a", "b")
    )
    assert not np.allclose(one["conv.weight"], two["conv.weight"])


def test_percentile_pruning_is_nvflares(tmp_path: Path) -> None:
    after = sent(FILTERS["percentile"]().process(message(), task(tmp_path)))
    before = update()
    per_step = np.concatenate([np.abs(value / 7).ravel() for value in before.values()])
    cutoff = np.percentile(per_step, 80)
    for name, value in before.items():
        if value.ndim:
            kept = np.where(np.abs(value / 7) >= cutoff, value, 0)
            np.testing.assert_allclose(after[name], kept, rtol=1e-5)
    assert after["bn.num_batches_tracked"] == 7
    assert after["bn.num_batches_tracked"].dtype == np.int64
    clipped = sent(
        UpdatePruning("percentile", percentile=80, gamma=0.1).process(message(), task(tmp_path))
    )
    assert np.abs(clipped["conv.weight"]).max() <= 0.7 + 1e-6


def test_dual_pruning_owes_from_round_to_round_on_the_sites_disk(tmp_path: Path) -> None:
    data = {"w": np.arange(1, 11, dtype=np.float32)}
    first = sent(FILTERS["dual"]().process(message(data), task(tmp_path)))["w"]
    assert first.tolist() == [0, 0, 0, 0, 0, 6, 7, 8, 0, 0]
    zero = {"w": np.zeros(10, np.float32)}
    second = sent(FILTERS["dual"]().process(message(zero), task(tmp_path)))["w"]
    assert second.tolist() == [0, 0, 3, 4, 5, 0, 0, 0, 0, 0], "a new filter knows the debt"
    file = tmp_path / "gradward" / "jobs" / "job-1" / OWED_FILE
    assert load_private(file)["w"].tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 9, 10]
    assert file.stat().st_mode & 0o077 == 0


def test_a_damaged_debt_blocks(tmp_path: Path) -> None:
    folder = tmp_path / "gradward" / "jobs" / "job-1"
    folder.mkdir(parents=True)
    (folder / OWED_FILE).write_bytes(b"nonsense")
    assert blocked(FILTERS["dual"]().process(message(), task(tmp_path)))


def test_buffers_are_withheld(tmp_path: Path) -> None:
    after = sent(WithholdBuffers().process(message(), task(tmp_path)))
    assert set(after) == {"conv.weight", "bn.weight", "fc.bias"}


def test_the_steps_travel_and_the_receipt_does_not(tmp_path: Path, each: UpdateFilter) -> None:
    reply = each.process(message(**{RECEIPT_META: "of the unchanged update"}), task(tmp_path))
    assert from_shareable(reply).meta == {MetaKey.NUM_STEPS_CURRENT_ROUND: 7}


# What else passes ---------------------------------------------------------------------------------


def test_other_results_pass_without_weights(tmp_path: Path, each: UpdateFilter) -> None:
    metrics = DXO(DataKind.METRICS, {"accuracy": 0.5}).to_shareable()
    assert from_shareable(each.process(metrics, task(tmp_path, "validate"))).data == {
        "accuracy": 0.5
    }
    answer = ScoreReply("refused", "closed").to_shareable()
    reply = each.process(answer, task(tmp_path, SCORE_TASK))
    assert ScoreReply.from_shareable(reply).reason == "closed"
    error = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    assert each.process(error, task(tmp_path)).get_return_code() == ReturnCode.EXECUTION_EXCEPTION


@pytest.mark.parametrize("name", ["submit_model", "validate", SCORE_TASK, "dream"])
@pytest.mark.parametrize("kind", [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF])
def test_weights_pass_as_no_other_task(
    tmp_path: Path, each: UpdateFilter, name: str, kind: str
) -> None:
    assert blocked(each.process(DXO(kind, update()).to_shareable(), task(tmp_path, name)))


def test_what_comes_in_is_not_changed(tmp_path: Path, each: UpdateFilter) -> None:
    fl_ctx = task(tmp_path)
    fl_ctx.set_prop(FLContextKey.FILTER_DIRECTION, FilterKey.IN, private=True, sticky=False)
    coming = message()
    assert each.process(coming, fl_ctx) is coming


# Failing closed -----------------------------------------------------------------------------------


def mutated(rng: random.Random) -> Any:
    """An update message with one thing wrong."""
    broken = copy.deepcopy(message())
    dxo = broken["DXO"]
    name = rng.choice([n for n in dxo["data"] if n != "bn.num_batches_tracked"])
    array = dxo["data"][name]
    bad = rng.choice([np.nan, np.inf, -np.inf])
    spoilt = array.copy()
    spoilt.flat[rng.randrange(array.size)] = bad
    changes: list[Callable[[], Any]] = [
        lambda: dxo["data"].update({name: spoilt}),
        lambda: dxo["data"].update({name: array.astype(object)}),
        lambda: dxo["data"].update({name: array.astype(complex)}),
        lambda: dxo["data"].update({name: array.tolist()}),
        lambda: dxo["data"].update({name: torch.from_numpy(array)}),
        lambda: dxo["data"].update({name: None}),
        lambda: dxo["data"].update({rng.randrange(9): array}),
        lambda: dxo["data"].clear(),
        lambda: dxo.update(data=None),
        lambda: dxo.update(data=[array]),
        lambda: dxo.update(kind=rng.choice([DataKind.WEIGHTS, DataKind.COLLECTION, "?", None])),
        lambda: dxo["meta"].update(extra=array),
        lambda: dxo["meta"].clear(),
        lambda: dxo["meta"].update({MetaKey.NUM_STEPS_CURRENT_ROUND: rng.choice([0, -1, 2.5])}),
        lambda: dxo["meta"].update({MetaKey.NUM_STEPS_CURRENT_ROUND: array}),
        lambda: dxo["meta"].update({"perturbation_mode": array}),
        lambda: dxo.update(more=array),
        lambda: dxo.pop("meta"),
        lambda: broken.update(beside=array),
        lambda: broken.set_header("beside", array),
        lambda: broken.set_header(ReservedHeaderKey.CONTENT_TYPE, "raw"),
        lambda: broken.set_return_code(rng.choice(["ODD", ReturnCode.EXECUTION_EXCEPTION])),
        lambda: broken.pop("DXO"),
        lambda: broken.pop(ReservedHeaderKey.HEADERS),
    ]
    rng.choice(changes)()
    return broken


def test_none_of_many_broken_messages_passes(tmp_path: Path, each: UpdateFilter) -> None:
    rng = random.Random(0)
    for _ in range(150):
        assert blocked(each.process(mutated(rng), task(tmp_path)))
    for nothing in (None, {}, [], "update", update()):
        assert blocked(each.process(nothing, task(tmp_path)))


@pytest.mark.parametrize(
    "change",
    [
        lambda update: update | {"foreign": torch.zeros(2)},
        lambda update: {name: value.double() for name, value in update.items()},
        lambda update: {name: value * float("nan") for name, value in update.items()},
        lambda update: {},
        lambda update: 1 / 0,
    ],
)
def test_a_change_that_goes_wrong_blocks(
    tmp_path: Path, change: Callable[[State], State], caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(WithholdBuffers):
        def change(self, update: State, *rest: Any) -> State:
            return change(update)

    with caplog.at_level(logging.WARNING):
        assert blocked(Wrong().process(message(), task(tmp_path)))
    assert "blocked" in caplog.text and "Traceback" not in caplog.text


def test_an_update_that_nvflare_would_not_prune_is_blocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its filter returns None on bad arguments, and NVFlare then sends the original."""
    monkeypatch.setattr(
        "gradward.flare.update_filters.PercentilePrivacy.process_dxo", lambda *args: None
    )
    assert blocked(FILTERS["percentile"]().process(message(), task(tmp_path)))


def test_an_update_of_zeros_is_not_sent_without_noise(tmp_path: Path) -> None:
    zero = {"w": np.zeros(4, np.float32)}
    assert blocked(UpdateNoise(0.1).process(message(zero), task(tmp_path)))


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda: UpdateNoise(0.0), ValueError),
        (lambda: UpdateNoise("much"), TypeError),
        (lambda: UpdateNoise(0.1, percentile=0), ValueError),
        (lambda: UpdatePruning("some"), ValueError),
        (lambda: UpdatePruning("percentile", percentile=100), ValueError),
        (lambda: UpdatePruning("percentile", gamma=0), ValueError),
        (lambda: UpdatePruning("dual", largest=0.6, smallest=0.6), ValueError),
        (lambda: UpdatePruning("dual", largest=True), TypeError),
    ],
)
def test_wrong_arguments_are_refused(build: Callable[[], Filter], error: type[Exception]) -> None:
    with pytest.raises(error):
        build()
