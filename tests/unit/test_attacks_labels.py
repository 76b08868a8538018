"""Labels are read from the last layer's update."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradward.attacks import AttackRefused
from gradward.attacks.labels import infer_labels
from gradward.training import TrainingSettings

from .attack_fixtures import observe, patches, public_mean, small_net

REPEATED = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])


@pytest.mark.parametrize("label", range(4))
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_image(label: int, optimizer: str) -> None:
    settings = TrainingSettings(batch_size=1, optimizer=optimizer)
    observation, _ = observe(small_net(), patches()[200:201], torch.tensor([label]), settings)
    inferred = infer_labels(observation, settings, 1, 1, public_mean()[None])
    assert inferred.tolist() == [label]
    assert inferred.dtype == torch.int64


@pytest.mark.parametrize(
    "settings",
    [
        TrainingSettings(batch_size=8, lr=0.01),
        TrainingSettings(batch_size=2, lr=1e-5),
        TrainingSettings(batch_size=8, lr=1e-5, epochs=2, momentum=0.9, weight_decay=0.01),
    ],
    ids=["one step", "four steps", "two epochs with momentum"],
)
def test_repeated_labels_are_counted(settings: TrainingSettings) -> None:
    observation, batches = observe(small_net(), patches()[200:208], REPEATED, settings)
    inferred = infer_labels(observation, settings, 8, len(batches), public_mean()[None])
    assert inferred.tolist() == REPEATED.tolist()


@pytest.mark.parametrize("count", [1, 8])
def test_without_a_bias_the_weights_rows_tell(count: int) -> None:
    settings = TrainingSettings(batch_size=8)
    model = small_net()
    model.fc = nn.Linear(4096, 4, bias=False)
    observation, _ = observe(model, patches()[200 : 200 + count], REPEATED[:count], settings)
    inferred = infer_labels(observation, settings, count, 1, public_mean()[None])
    assert inferred.tolist() == REPEATED[:count].tolist()


def test_where_labels_cannot_be_had() -> None:
    adam = TrainingSettings(batch_size=8, optimizer="adam")
    observation, _ = observe(small_net(), patches()[200:208], REPEATED, adam)
    with pytest.raises(AttackRefused, match="adam"):
        infer_labels(observation, adam, 8, 1, public_mean()[None])

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    sgd = TrainingSettings(batch_size=8)
    observation, _ = observe(model, patches()[200:208], REPEATED, sgd)
    with pytest.raises(AttackRefused, match="no linear layer"):
        infer_labels(observation, sgd, 8, 1, public_mean()[None])
