"""The reproducible mean."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants

from gradward.batchnorm import BATCHNORM_BUFFERS, is_batchnorm_buffer
from gradward.data import load_public_set
from gradward.defenses.recalibration import calibration_images, recalibrate
from gradward.flare.aggregator import ReproducibleAggregator
from gradward.flare.experiment import Experiment
from gradward.flare.states import as_arrays, load_global_state
from gradward.training import state_copy

from .fake_engine import context

WEIGHTS = {"w": np.zeros((3, 2), np.float32), "n": np.array(4, np.int64)}


class Context(FLContext):
    """A context of one contribution."""

    def __init__(self, site: str, number: int = 0) -> None:
        super().__init__()
        self.set_prop(AppConstants.GLOBAL_MODEL, make_model_learnable(dict(WEIGHTS), {}))
        self.set_prop(AppConstants.CURRENT_ROUND, number)
        peer = FLContext()
        peer.set_prop(ReservedKey.IDENTITY_NAME, site)
        self.set_peer_context(peer)


def update(value: Any, steps: Any = 1, counter: float = 1, **extra: Any) -> Shareable:
    data = {"w": np.asarray(value, np.float32) * np.ones((3, 2), np.float32), "n": counter}
    return DXO(
        DataKind.WEIGHT_DIFF, data=data | extra, meta={MetaKey.NUM_STEPS_CURRENT_ROUND: steps}
    ).to_shareable()


def mean_of(updates: dict[str, Shareable]) -> dict[str, np.ndarray]:
    aggregator = ReproducibleAggregator()
    for site, shareable in updates.items():
        assert aggregator.accept(shareable, Context(site))
    return dict(from_shareable(aggregator.aggregate(Context(""))).data)


def test_mean_is_weighted_by_steps() -> None:
    mean = mean_of({"a": update(1.0, steps=1), "b": update(4.0, steps=3)})
    np.testing.assert_allclose(mean["w"], (1 * 1 + 3 * 4) / 4)
    assert mean["w"].dtype == np.float32


def test_order_of_arrival_does_not_matter_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    updates = {f"site-{i}": update(rng.normal(), steps=i + 1) for i in range(4)}
    means = [
        mean_of(dict(order))["w"].tobytes() for order in itertools.permutations(updates.items())
    ]
    assert len(set(means)) == 1


def test_counters_stay_whole() -> None:
    mean = mean_of({"a": update(0.0, counter=1), "b": update(0.0, counter=6)})
    assert mean["n"] == 4 and mean["n"].dtype == np.int64


@pytest.mark.parametrize(
    "bad",
    [
        update(np.nan),
        update(np.inf),
        update(0.0, foreign=np.zeros(2)),
        update(0.0, n=np.zeros(2)),
        update(0.0, steps=0),
        update(0.0, steps="many"),
        Shareable(),
        DXO(DataKind.WEIGHTS, data={"w": np.zeros((3, 2)), "n": 1}).to_shareable(),
    ],
)
def test_an_unusable_update_is_left_out(bad: Shareable) -> None:
    aggregator = ReproducibleAggregator()
    assert not aggregator.accept(bad, Context("bad"))
    assert aggregator.accept(update(2.0), Context("good"))
    np.testing.assert_array_equal(
        from_shareable(aggregator.aggregate(Context(""))).data["w"], np.full((3, 2), 2.0)
    )


def test_late_and_second_updates_are_left_out() -> None:
    aggregator = ReproducibleAggregator()
    late = update(1.0)
    late.add_cookie(AppConstants.CONTRIBUTION_ROUND, 0)
    assert not aggregator.accept(late, Context("a", number=1))
    assert aggregator.accept(update(1.0), Context("a", number=1))
    assert not aggregator.accept(update(1.0), Context("a", number=1))


def test_a_round_without_updates_changes_nothing() -> None:
    aggregator = ReproducibleAggregator()
    assert from_shareable(aggregator.aggregate(Context(""))).data == {}


# Withheld buffers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def job() -> Experiment:
    return Experiment(
        model="bn_cnn",
        model_options={"width": 4},
        dataset="histology",
        image_size=[32, 32],
        channels=3,
        num_classes=2,
    )


class Server:
    """An aggregator of a job as the server runs it, at one global state."""

    def __init__(self, root: Path, job: Experiment, withheld: str | None = "buffers") -> None:
        self.root, self.job = root, job
        self.weights = as_arrays(state_copy(job.build_model()))
        self.aggregator = ReproducibleAggregator(withheld)
        self.aggregator.handle_event(EventType.START_RUN, self.context("server"))

    def context(self, site: str) -> FLContext:
        fl_ctx = context(self.root, {"experiment": self.job}, "server")
        fl_ctx.set_prop(AppConstants.GLOBAL_MODEL, make_model_learnable(dict(self.weights), {}))
        fl_ctx.set_prop(AppConstants.CURRENT_ROUND, 0)
        peer = FLContext()
        peer.set_prop(ReservedKey.IDENTITY_NAME, site)
        fl_ctx.set_peer_context(peer)
        return fl_ctx

    def accept(self, site: str, change: float, leave_out: tuple[str, ...] = ()) -> bool:
        data = {
            name: np.full_like(value, change)
            for name, value in self.weights.items()
            if not name.endswith(leave_out or ("nothing",))
        }
        return self.aggregator.accept(
            DXO(DataKind.WEIGHT_DIFF, data).to_shareable(), self.context(site)
        )

    def averaged(self) -> dict[str, np.ndarray]:
        change = from_shareable(self.aggregator.aggregate(self.context(""))).data
        return {name: value + change.get(name, 0) for name, value in self.weights.items()}


def test_withheld_buffers_are_recalibrated_on_public_images(
    tmp_path: Path, job: Experiment
) -> None:
    server = Server(tmp_path, job)
    for site, change in (("a", 0.01), ("b", 0.03)):
        assert server.accept(site, change, BATCHNORM_BUFFERS)
    after = server.averaged()
    model = job.build_model()
    load_global_state(model, after)
    public = load_public_set({"format": "embedded"}, name="h", image_size=(32, 32), channels=3)
    recalibrate(model, calibration_images(public.part("fit")))
    for name, value in as_arrays(state_copy(model)).items():
        np.testing.assert_allclose(after[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        assert after[name].dtype == server.weights[name].dtype
        if is_batchnorm_buffer(name):
            assert not np.array_equal(after[name], server.weights[name]), "never the initial ones"
        else:
            np.testing.assert_allclose(after[name], server.weights[name] + 0.02, atol=1e-6)


def test_buffers_that_some_sites_send_are_averaged_over_those(
    tmp_path: Path, job: Experiment
) -> None:
    server = Server(tmp_path, job)
    assert server.accept("a", 0.5, BATCHNORM_BUFFERS)
    assert server.accept("b", 0.25) and server.accept("c", 0.75)
    after = server.averaged()
    for name in ("body.1.running_mean", "fc.weight"):
        np.testing.assert_allclose(after[name], server.weights[name] + 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("withheld", "leave_out"),
    [
        (None, BATCHNORM_BUFFERS),
        ("buffers", ("running_mean",)),
        ("buffers", ("weight",)),
        ("buffers", ("fc.bias", *BATCHNORM_BUFFERS)),
    ],
)
def test_nothing_else_may_be_missing(
    tmp_path: Path, job: Experiment, withheld: str | None, leave_out: tuple[str, ...]
) -> None:
    assert not Server(tmp_path, job, withheld).accept("a", 0.1, leave_out)


def test_noise_cannot_push_a_variance_below_zero(tmp_path: Path, job: Experiment) -> None:
    server = Server(tmp_path, job, None)
    assert server.accept("a", -5.0)
    assert (server.averaged()["body.1.running_var"] == 0).all()


def test_a_server_without_public_images_says_so_before_the_first_round(
    tmp_path: Path, job: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    panics: list[str] = []
    monkeypatch.setattr(
        ReproducibleAggregator, "system_panic", lambda self, reason, fl_ctx: panics.append(reason)
    )
    monkeypatch.setattr(job, "public_set", "missing")
    Server(tmp_path, job)
    assert len(panics) == 1 and "withheld buffers" in panics[0]
    with pytest.raises(ValueError, match="withheld"):
        ReproducibleAggregator(withheld="weights")
