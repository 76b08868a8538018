"""Local training against a plain loop written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradward.training import (
    Batch,
    RawBatchRefused,
    RawImages,
    TrainingAborted,
    TrainingSettings,
    draw_batches,
    state_copy,
    state_difference,
    train_locally,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)
    )


IMAGES = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(10) % 2
SOURCE = RawImages(IMAGES, LABELS)


def test_it_is_the_loop_one_would_write() -> None:
    settings = TrainingSettings(batch_size=4, lr=0.1, epochs=2, momentum=0.9, weight_decay=0.01)
    model = network()
    run = train_locally(model, SOURCE, settings, torch.Generator().manual_seed(5))
    twin = network().train()
    optimizer = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for batch in run.batches:
        optimizer.zero_grad()
        F.cross_entropy(twin(IMAGES[batch]), LABELS[batch]).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=0, atol=0)
    assert int(model[1].num_batches_tracked) == len(run.batches) == 6


def test_each_epoch_sees_each_image_once() -> None:
    settings = TrainingSettings(batch_size=4, epochs=3)
    batches = draw_batches(10, settings, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    for epoch in range(3):
        seen = sorted(i for batch in batches[3 * epoch : 3 * epoch + 3] for i in batch)
        assert seen == list(range(10))


def test_steps_replace_epochs() -> None:
    settings = TrainingSettings(batch_size=4, steps=4)
    assert len(draw_batches(10, settings, torch.Generator())) == 4 == settings.number_of_steps(10)
    assert len(draw_batches(1, settings, torch.Generator())) == 4


def test_abort_is_honoured_within_a_batch() -> None:
    calls = iter([False, False, True])
    model = network()
    with pytest.raises(TrainingAborted):
        train_locally(
            model,
            SOURCE,
            TrainingSettings(batch_size=1, epochs=100),
            torch.Generator(),
            aborted=lambda: next(calls),
        )
    assert int(model[1].num_batches_tracked) == 2


def test_a_loss_that_explodes_is_told() -> None:
    with pytest.raises(FloatingPointError, match="learning rate"):
        train_locally(
            network(),
            SOURCE,
            TrainingSettings(batch_size=4, lr=1e30, epochs=5),
            torch.Generator(),
        )


def test_difference_includes_buffers() -> None:
    model = network()
    before = state_copy(model)
    train_locally(model, SOURCE, TrainingSettings(batch_size=5), torch.Generator())
    difference = state_difference(state_copy(model), before)
    assert set(difference) == set(model.state_dict())
    assert int(difference["1.num_batches_tracked"]) == 2
    assert difference["1.running_mean"].abs().sum() > 0


class PerturbedUntil:
    """Perturbed batches, until the position ``raw_from`` is asked for."""

    def __init__(self, raw_from: int) -> None:
        self.raw_from = raw_from

    def __len__(self) -> int:
        return len(IMAGES)

    def batch(self, indices: list[int]) -> Batch:
        return Batch(IMAGES[indices], LABELS[indices], perturbed=max(indices) < self.raw_from)


def test_samples_are_counted_as_what_they_are() -> None:
    settings = TrainingSettings(batch_size=1, epochs=2)
    run = train_locally(network(), PerturbedUntil(7), settings, torch.Generator())
    assert (run.raw_samples, run.perturbed_samples) == (6, 14)


def test_a_raw_batch_never_reaches_a_model_that_may_see_perturbed_ones_only() -> None:
    model = network()
    before = state_copy(model)
    settings = TrainingSettings(batch_size=5)
    with pytest.raises(RawBatchRefused):
        train_locally(model, SOURCE, settings, torch.Generator(), perturbed_only=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    run = train_locally(model, PerturbedUntil(10), settings, torch.Generator(), perturbed_only=True)
    assert (run.raw_samples, run.perturbed_samples) == (0, 10)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"batch_size": 0}, ValueError),
        ({"batch_size": 2.0}, TypeError),
        ({"lr": 0}, ValueError),
        ({"lr": float("nan")}, ValueError),
        ({"steps": 0}, ValueError),
        ({"optimizer": "lion"}, ValueError),
        ({"momentum": 0.9, "optimizer": "adam"}, ValueError),
        ({"learning_rate": 0.1}, ValueError),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match=str(next(iter(values)))):
        TrainingSettings.from_dict(values)
