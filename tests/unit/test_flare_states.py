"""What a site sent, as the change of one local training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind

from gradward.flare.states import MessageError, local_change, read_dxo

BEFORE = {
    "weight": torch.tensor([1.0, 2.0]),
    "norm.num_batches_tracked": torch.tensor(3.4, dtype=torch.float64),
}


def test_whole_weights_become_their_change() -> None:
    after = {"weight": np.array([1.5, 1.0], np.float32)}
    change = local_change(after, BEFORE, is_whole_model=True)
    assert change["weight"].tolist() == [0.5, -1.0]


def test_a_difference_stays_as_it_is() -> None:
    sent = {"weight": np.array([0.25, 0.0], np.float32), "norm.num_batches_tracked": np.int64(2)}
    change = local_change(sent, BEFORE, is_whole_model=False)
    assert change["weight"].tolist() == [0.25, 0.0]
    assert change["norm.num_batches_tracked"] == 2


@pytest.mark.parametrize("is_whole_model", [True, False])
def test_steps_are_counted_from_where_load_state_dict_starts(is_whole_model: bool) -> None:
    """The truth comes from torch: a model loads the mean of counters and takes five steps."""
    model = torch.nn.BatchNorm1d(1)
    state = model.state_dict()
    sent = state["num_batches_tracked"].double() + 3.4
    model.load_state_dict(state | {"num_batches_tracked": sent})
    for _ in range(5):
        model(torch.randn(4, 1))
    after = model.state_dict()["num_batches_tracked"]
    received = after if is_whole_model else after - sent
    change = local_change(
        {"norm.num_batches_tracked": received}, BEFORE, is_whole_model=is_whole_model
    )
    assert change["norm.num_batches_tracked"] == pytest.approx(5)


def test_what_does_not_belong_is_left_for_the_observation_to_refuse() -> None:
    foreign = {"other": np.zeros(2), "weight": np.zeros(7)}
    change = local_change(foreign, BEFORE, is_whole_model=True)
    assert change["other"].shape == (2,) and change["weight"].shape == (7,)


def test_a_scalar_in_a_list_is_a_scalar() -> None:
    after = {"norm.num_batches_tracked": np.array([8.0])}
    change = local_change(after, BEFORE, is_whole_model=True)
    assert change["norm.num_batches_tracked"].item() == 5


def test_only_the_kinds_asked_for_are_read() -> None:
    message = DXO(DataKind.METRICS, data={"auc": 0.5}).to_shareable()
    with pytest.raises(MessageError, match="WEIGHTS"):
        read_dxo(message, DataKind.WEIGHTS, DataKind.WEIGHT_DIFF)
