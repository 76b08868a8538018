"""What an update tells before any attack, and what is no update."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradward.attacks import Observation, ObservationError
from gradward.training import TrainingSettings

from .attack_fixtures import patches, small_net, train

LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])


def expected_statistics(model: nn.Module, updates: list[torch.Tensor]) -> tuple:
    """Forward batches through a fresh BatchNorm and weigh their statistics by hand."""
    steps, momentum = len(updates), model.momentum
    weights = (
        [1 / steps] * steps
        if momentum is None
        else [(1 - momentum) ** (steps - 1 - k) for k in range(steps)]
    )
    total = sum(weights)
    mean = sum(w * b.mean((0, 2, 3)) for w, b in zip(weights, updates, strict=True)) / total
    var = (
        sum(w * b.var((0, 2, 3), correction=1) for w, b in zip(weights, updates, strict=True))
        / total
    )
    return mean, var


class NormOnly(nn.Module):
    """BatchNorm on the pixels themselves, so that its batch statistics are the pictures'."""

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=momentum)
        self.fc = nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(images).mean((2, 3)) + images.mean((2, 3)))


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_batch_statistics_are_those_of_the_batches(momentum: float | None, steps: int) -> None:
    torch.manual_seed(0)
    model = NormOnly(momentum).double()
    with torch.no_grad():
        # A layer that has seen other batches before: the cumulative mean then has a past.
        for start in range(0, 12, 4):
            model(patches()[start : start + 4].double())
    images = patches()[100:110].double()
    settings = TrainingSettings(batch_size=2, lr=0.1, steps=steps)
    before, update, batches = train(model, images, LABELS, settings)

    observation = Observation.from_update(model, before, update)

    (layer,) = observation.batch_statistics
    mean, var = expected_statistics(model.norm, [images[batch] for batch in batches])
    assert observation.steps == layer.steps == steps
    torch.testing.assert_close(layer.mean, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.var, var, rtol=1e-9, atol=1e-9)


class Frozen(nn.BatchNorm2d):
    """A layer that stays in evaluation mode."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


def test_a_frozen_layer_is_left_out_and_stays_frozen() -> None:
    torch.manual_seed(0)
    model = small_net()
    model.body[4] = Frozen(32)
    before, update, _ = train(model, patches()[:4], LABELS[:4], TrainingSettings(batch_size=4))
    plain = small_net()

    observation = Observation.from_update(plain, before, update)

    assert [layer.name for layer in observation.batch_statistics] == ["body.1", "body.7"]
    assert observation.steps == 1
    assert not observation.model.body[4].training
    assert observation.model.body[1].training


@pytest.mark.parametrize("how", ["absent", "zero"])
def test_withheld_buffers_leave_an_observation_without_batch_statistics(how: str) -> None:
    before, update, _ = train(
        small_net(), patches()[:2], LABELS[:2], TrainingSettings(batch_size=2)
    )
    buffers = [name for name in update if "running" in name or "num_batches" in name]
    for name in buffers:
        if how == "absent":
            del update[name]
        else:
            update[name] = torch.zeros_like(update[name])

    observation = Observation.from_update(small_net(), before, update)

    assert not observation.has_batch_statistics
    assert observation.steps is None
    assert all(module.training for module in observation.model.modules())


def test_arrays_and_rounded_float_counters_are_taken() -> None:
    before, update, _ = train(
        small_net(), patches()[:4], LABELS[:4], TrainingSettings(batch_size=2)
    )
    arrays = {name: value.numpy() for name, value in update.items()}
    arrays["body.1.num_batches_tracked"] = np.asarray([2.0002])

    observation = Observation.from_update(
        small_net(), {name: value.numpy() for name, value in before.items()}, arrays
    )

    assert observation.steps == 2
    assert observation.parameter_update["fc.bias"].dtype == torch.float32
    torch.testing.assert_close(observation.model.state_dict()["fc.weight"], before["fc.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda u: u.clear(), "empty"),
        (lambda u: u["fc.weight"].fill_(math.nan), r"'fc.weight' has values that are not finite"),
        (lambda u: u["body.0.bias"].fill_(math.inf), r"'body.0.bias'"),
        (lambda u: u.update({"fc.weight": torch.ones(3)}), r"'fc.weight' must be real \(4, 4096\)"),
        (lambda u: u.update({"other": torch.ones(3)}), r"'other'.*does not know"),
        (lambda u: u.pop("fc.bias"), r"lacks 'fc.bias', \(4,\) expected"),
        (lambda u: [v.zero_() for v in u.values()], "zero in every parameter"),
        (lambda u: u.update({"fc.bias": np.array(["a"] * 4)}), "not a numeric array"),
        (
            lambda u: u.update({"body.1.num_batches_tracked": torch.tensor(1.5)}),
            r"'body.1.num_batches_tracked' must be a whole number",
        ),
        (
            lambda u: u.update({"body.1.num_batches_tracked": torch.tensor(-1)}),
            "whole number of steps, 0 or more",
        ),
    ],
)
def test_what_is_no_update_is_refused_by_name(change, message: str) -> None:
    before, update, _ = train(
        small_net(), patches()[:2], LABELS[:2], TrainingSettings(batch_size=2)
    )
    change(update)

    with pytest.raises(ObservationError, match=message):
        Observation.from_update(small_net(), before, update)


def test_a_broken_global_state_is_refused() -> None:
    before, update, _ = train(
        small_net(), patches()[:2], LABELS[:2], TrainingSettings(batch_size=2)
    )
    del before["body.1.running_mean"]

    with pytest.raises(ObservationError, match=r"global state lacks 'body.1.running_mean'"):
        Observation.from_update(small_net(), before, update)
