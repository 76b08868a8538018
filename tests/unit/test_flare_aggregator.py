"""The reproducible mean."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants

from gradward.flare.aggregator import ReproducibleAggregator

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
