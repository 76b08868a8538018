"""Local training against a plain loop written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradward.training import (
    Batch,
    DpSgdSettings,
    RawBatchRefused,
    RawImages,
    TooFewImages,
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


def test_a_small_last_batch_is_merged_into_the_one_before() -> None:
    settings = TrainingSettings(batch_size=4, min_batch_size=3, epochs=2)
    batches = draw_batches(10, settings, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == [4, 6] * 2
    assert settings.number_of_steps(10) == 4 and settings.smallest_batch(10) == 4
    for epoch in (batches[:2], batches[2:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(10))
    assert settings.batch_sizes(11) == [4, 4, 3] and settings.batch_sizes(3) == [3]
    assert TrainingSettings(batch_size=4).smallest_batch(10) == 2


def test_a_site_with_too_few_images_does_not_train() -> None:
    settings = TrainingSettings(batch_size=8, min_batch_size=3)
    model = network()
    with pytest.raises(TooFewImages, match="min_batch_size"):
        train_locally(model, RawImages(IMAGES[:2], LABELS[:2]), settings, torch.Generator())
    assert int(model[1].num_batches_tracked) == 0


def test_settings_come_from_json_with_their_parts() -> None:
    values = {"dp_sgd": {"epsilon": 8, "rounds": 5, "delta": 1e-4}, "bido": None}
    settings = TrainingSettings.from_dict(values)
    assert settings.dp_sgd == DpSgdSettings(epsilon=8, rounds=5, delta=1e-4)
    assert settings.draws_noise and not TrainingSettings().draws_noise
    assert settings.smallest_batch(100) == 1, "each image is drawn by itself"


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"min_batch_size": 9, "batch_size": 8}, ValueError),
        ({"min_batch_size": 2, "dp_sgd": {"noise_multiplier": 1.0}}, ValueError),
        ({"dp_sgd": 8.0}, TypeError),
        ({"input_noise": "much"}, TypeError),
    ],
)
def test_contradictory_settings_are_refused(
    values: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error, match=str(next(iter(values)))):
        TrainingSettings.from_dict(values)
