"""At the truth the simulated update is the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks.nets import resnet18
from torch import Tensor, nn

from gradward.attacks import AttackRefused
from gradward.attacks.objectives import (
    CosineDistance,
    RelativeDistance,
    StatisticsDistance,
    total_variation,
)
from gradward.attacks.simulation import ClientSimulator
from gradward.training import TrainingSettings

from .attack_fixtures import observe, patches, small_net

LABELS = torch.tensor([0, 1, 1, 0])
# Picture rows of 64x64 pixels, grey: four patches make one.
GREY = patches()[:64].reshape(4, 16, 3, 32, 32)[:, :4].mean(2).reshape(4, 1, 64, 64)


def residual(
    model: nn.Module, images: Tensor, labels: Tensor, settings: TrainingSettings
) -> tuple[float, float, float]:
    """Return the cosine, relative and statistics distances of simulated and real updates."""
    observation, batches = observe(model, images, labels, settings)
    simulated = ClientSimulator(observation, settings).run(images, labels, batches)
    real = list(observation.parameter_update.values())
    gap = sum(
        (a - b).square().sum() for a, b in zip(simulated.parameter_updates, real, strict=True)
    )
    statistics = [(layer.mean, layer.var) for layer in observation.batch_statistics]
    return (
        float(CosineDistance(real)(simulated.parameter_updates)),
        float(gap / sum(b.square().sum() for b in real)),
        float(StatisticsDistance(statistics)(simulated.batch_statistics)),
    )


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_small_network(steps: int, momentum: float | None) -> None:
    settings = TrainingSettings(batch_size=2, lr=0.05, steps=steps)
    model = small_net(momentum=momentum).double()
    cosine, relative, statistics = residual(model, patches()[:4].double(), LABELS, settings)
    assert cosine <= 1e-12
    assert relative <= 1e-12
    assert statistics <= 1e-12


@pytest.mark.parametrize("steps", [1, 2])
def test_resnet18(steps: int) -> None:
    torch.manual_seed(0)
    model = resnet18(spatial_dims=2, n_input_channels=1, num_classes=2).double()
    settings = TrainingSettings(batch_size=2, lr=0.01, steps=steps)
    cosine, relative, statistics = residual(model, GREY.double(), LABELS, settings)
    assert cosine <= 1e-6
    assert relative <= 1e-6
    assert statistics <= 1e-8


@pytest.mark.parametrize("steps", [1, 2])
def test_single_precision_is_good_enough(steps: int) -> None:
    settings = TrainingSettings(batch_size=2, lr=0.05, steps=steps)
    cosine, _, statistics = residual(small_net(), patches()[:4], LABELS, settings)
    assert cosine <= 1e-6
    assert statistics <= 1e-8


def test_momentum_and_weight_decay_are_those_of_torch() -> None:
    settings = TrainingSettings(batch_size=2, lr=0.05, steps=3, momentum=0.9, weight_decay=0.01)
    _, relative, _ = residual(small_net().double(), patches()[:4].double(), LABELS, settings)
    assert relative <= 1e-12


class Norms(nn.Module):
    """A small network with one of the norms that clients have."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), norm, nn.ELU(), nn.Conv2d(8, 4, 3, 4))
        self.fc = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images).flatten(1))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 4},
        {"batch_size": 1},
        {"batch_size": 3, "epochs": 2},
        {"batch_size": 2, "epochs": 3, "momentum": 0.9, "weight_decay": 0.01},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm2d(8),
        lambda: nn.BatchNorm2d(8, affine=False, momentum=None),
        lambda: nn.GroupNorm(2, 8),
        lambda: nn.InstanceNorm2d(8, affine=True),
        nn.Identity,
    ],
    ids=["batch", "batch, cumulative", "group", "instance", "none"],
)
def test_every_client_setting_is_exact_at_the_truth(
    norm: Callable[[], nn.Module], settings: dict[str, Any], loss: str
) -> None:
    torch.manual_seed(0)
    of_client = TrainingSettings(lr=0.05, loss=loss, **settings)
    observation, batches = observe(
        Norms(norm()).double(), patches()[:4].double(), LABELS, of_client
    )
    simulated = ClientSimulator(observation, of_client).run(patches()[:4].double(), LABELS, batches)
    real = list(observation.parameter_update.values())
    assert float(CosineDistance(real)(simulated.parameter_updates)) <= 1e-6
    assert float(RelativeDistance(real)(simulated.parameter_updates)) <= 1e-10
    if observation.batch_statistics:
        statistics = [(layer.mean, layer.var) for layer in observation.batch_statistics]
        distance = StatisticsDistance(statistics)(simulated.batch_statistics)
        assert float(distance) <= 1e-8


class Sometimes(nn.Module):
    """A layer that is never called, and one that only bright batches go through."""

    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Linear(4, 4)
        self.often = nn.Linear(3 * 32 * 32, 4)
        self.bright = nn.Linear(3 * 32 * 32, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.often(images.flatten(1))
        return logits + self.bright(images.flatten(1)) if images.mean() > 0.5 else logits


def test_parameters_that_a_step_does_not_use_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = Sometimes().double()
    images = torch.rand(4, 3, 32, 32).double() * torch.tensor([0.9, 1, 1, 1]).reshape(4, 1, 1, 1)
    images[2] += 1 - images[2].mean()
    settings = TrainingSettings(batch_size=1, lr=0.05, epochs=2, momentum=0.9, weight_decay=0.1)
    observation, batches = observe(model, images, LABELS, settings)
    used = [bool(images[batch].mean() > 0.5) for batch in batches]
    assert used[used.index(True) :].count(False), "its velocity outlives a step without it"

    simulated = ClientSimulator(observation, settings).run(images.requires_grad_(), LABELS, batches)
    for name, ours in zip(observation.parameter_update, simulated.parameter_updates, strict=True):
        torch.testing.assert_close(ours, observation.parameter_update[name], msg=name)
    assert not any(u.any() for u in simulated.parameter_updates[:2])
    assert observation.parameter_update["bright.weight"].any()


class OwnNorm(nn.BatchNorm2d):
    """BatchNorm with arithmetic of its own."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) * 2


def test_a_batch_norm_of_unknown_arithmetic_is_refused_by_name() -> None:
    with pytest.raises(AttackRefused, match=r"'body.1' is a OwnNorm"):
        ClientSimulator(Norms(OwnNorm(8)), TrainingSettings())


def test_one_value_a_channel_is_refused_by_name() -> None:
    simulator = ClientSimulator(Norms(nn.BatchNorm2d(8)), TrainingSettings())
    simulator.model.body[0] = nn.AdaptiveAvgPool2d(1)
    with pytest.raises(AttackRefused, match=r"'body.1' gets one value a channel"):
        simulator.run(torch.rand(1, 8, 32, 32), LABELS[:1], [[0]])


def test_gradients_reach_the_images_through_both_steps() -> None:
    settings = TrainingSettings(batch_size=2, lr=0.5, steps=2)
    observation, _ = observe(small_net(), patches()[:4], LABELS, settings)
    simulator = ClientSimulator(observation, settings)
    images = patches()[:4].clone().requires_grad_()

    update = simulator.run(images, LABELS, [[0, 1], [2, 3]])
    (slope,) = torch.autograd.grad(sum(u.square().sum() for u in update.parameter_updates), images)

    assert bool(slope.flatten(1).any(dim=1).all())


def test_running_statistics_and_weights_are_not_disturbed() -> None:
    settings = TrainingSettings(batch_size=2)
    model = small_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ClientSimulator(model, settings).run(patches()[:2], LABELS[:2], [[0, 1]])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_soft_labels_that_are_certain_are_hard_labels() -> None:
    simulator = ClientSimulator(small_net(), TrainingSettings(batch_size=2))
    hard = simulator.run(patches()[:2], LABELS[:2], [[0, 1]])
    soft = simulator.run(patches()[:2], nn.functional.one_hot(LABELS[:2], 4).float(), [[0, 1]])
    torch.testing.assert_close(hard.parameter_updates, soft.parameter_updates)


def test_adam_is_refused() -> None:
    with pytest.raises(AttackRefused, match="adam"):
        ClientSimulator(small_net(), TrainingSettings(optimizer="adam"))


def test_distances() -> None:
    a, b = [torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 2.0])]
    assert float(CosineDistance(a)(a)) == pytest.approx(0)
    assert float(CosineDistance(b)(a)) == pytest.approx(1)
    assert float(CosineDistance(b)([torch.zeros(2)])) == pytest.approx(1)
    target = [(torch.tensor([0.0]), torch.tensor([4.0]))]
    shifted = [(torch.tensor([1.0]), torch.tensor([16.0]))]
    # Half a deviation in the mean, one deviation in the deviation.
    assert float(StatisticsDistance(target)(shifted)) == pytest.approx(0.25 + 1)
    ramp = torch.arange(4.0).expand(1, 5, 4, 4)
    assert float(total_variation(ramp)) == pytest.approx(1)
