"""Defences of an update: noise of the stated size, the entries the paper removes, no buffers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from gradward.batchnorm import is_batchnorm_buffer
from gradward.defenses.updates import (
    calibrated_noise,
    dual_prune,
    noise_deviation,
    withhold_buffers,
)


def update(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(20, 5, 3, 3, generator=generator) * 0.01,
        "bn.weight": torch.randn(20, generator=generator) * 0.1,
        "bn.running_mean": torch.randn(20, generator=generator),
        "bn.running_var": torch.randn(20, generator=generator),
        "bn.num_batches_tracked": torch.tensor(4),
        "fc.weight": torch.zeros(2, 500),
    }


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("percentile", [50.0, 95.0, 100.0])
def test_sigma_is_a_fraction_of_the_percentile_of_what_is_not_zero(percentile: float) -> None:
    floats = [v.numpy().ravel() for v in update().values() if v.is_floating_point()]
    values = np.concatenate(floats)
    expected = 0.3 * np.percentile(np.abs(values[values != 0]), percentile)
    assert noise_deviation(update(), 0.3, percentile) == pytest.approx(expected, rel=1e-6)


def test_every_tensor_gets_this_noise_buffers_too_and_counters_none() -> None:
    before = update()
    noisy = calibrated_noise(before, 0.5, generator())
    sigma = noise_deviation(before, 0.5, 95.0)
    for name, value in noisy.items():
        assert value.dtype == before[name].dtype and value.shape == before[name].shape
        if name == "bn.num_batches_tracked":
            assert int(value) == 4
        else:
            noise = (value - before[name]).flatten() / sigma
            assert kstest(noise.double().numpy(), "norm").pvalue > 1e-3, name
    torch.testing.assert_close(before["conv.weight"], update()["conv.weight"], rtol=0, atol=0)


@pytest.mark.parametrize(("fraction", "percentile"), [(0.0, 95.0), (0.1, 0.0), (0.1, 101.0)])
def test_noise_that_cannot_be_is_refused(fraction: float, percentile: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        calibrated_noise(update(), fraction, generator(), percentile)


def test_an_update_of_zeros_gets_no_noise_of_size_zero() -> None:
    with pytest.raises(ValueError, match="zero"):
        calibrated_noise({"w": torch.zeros(3)}, 0.1, generator())


def test_dual_pruning_keeps_the_middle_of_each_tensor() -> None:
    values = torch.arange(1.0, 101.0)[torch.randperm(100, generator=generator())]
    signs = torch.where(torch.rand(100, generator=generator(1)) < 0.5, -1.0, 1.0)
    pruned, owed = dual_prune({"a": (values * signs).reshape(4, 25), "b": -values}, {}, 0.05, 0.75)
    for name in ("a", "b"):
        kept = pruned[name][pruned[name] != 0].abs().sort().values
        assert kept.tolist() == list(range(76, 96)), "neither the 75 smallest nor the 5 largest"
    assert torch.equal(pruned["a"] + owed["a"], (values * signs).reshape(4, 25))


def test_what_is_held_back_is_added_to_the_next_update() -> None:
    first, second = {"w": torch.tensor([1.0, 2, 3, 4])}, {"w": torch.tensor([10.0, 0, 0, 0])}
    sent, owed = dual_prune(first, {}, 0.25, 0.5)
    assert sent["w"].tolist() == [0, 0, 3, 0] and owed["w"].tolist() == [1, 2, 0, 4]
    sent, owed = dual_prune(second, owed, 0.25, 0.5)
    assert sent["w"].tolist() == [0, 0, 0, 4], "11, 2, 0, 4 less the largest and two smallest"
    assert owed["w"].tolist() == [11, 2, 0, 0]


def test_nothing_is_lost_over_many_rounds() -> None:
    total, owed = torch.zeros(50), {}
    for number in range(30):
        step = {"w": torch.randn(50, generator=generator(number))}
        sent, owed = dual_prune(step, owed)
        total += sent["w"] - step["w"]
    torch.testing.assert_close(total, -owed["w"], rtol=0, atol=1e-4)


def test_buffers_are_pruned_and_not_owed() -> None:
    pruned, owed = dual_prune(update(), {})
    assert set(owed) == {"conv.weight", "bn.weight", "fc.weight"}
    assert (pruned["bn.running_mean"] != 0).sum() == 20 - 15 - 1
    assert int(pruned["bn.num_batches_tracked"]) == 4


def test_a_debt_of_another_model_or_wrong_shares_are_refused() -> None:
    _, owed = dual_prune({"w": torch.ones(4)}, {})
    with pytest.raises(ValueError, match="another model"):
        dual_prune({"v": torch.ones(4)}, owed)
    with pytest.raises(ValueError, match="another model"):
        dual_prune({"w": torch.ones(5)}, owed)
    for shares in ((0.5, 0.5), (-0.1, 0.5), (0.0, 0.0)):
        with pytest.raises(ValueError, match="shares"):
            dual_prune({"w": torch.ones(4)}, {}, *shares)


def test_withheld_buffers_are_batchnorms_alone() -> None:
    assert set(withhold_buffers(update())) == {"conv.weight", "bn.weight", "fc.weight"}
    assert is_batchnorm_buffer("running_mean") and not is_batchnorm_buffer("my_running_mean")
