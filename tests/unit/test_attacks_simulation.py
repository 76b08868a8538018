"""At the truth the simulated update is the real one."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import resnet18
from torch import Tensor, nn

from gradward.attacks import AttackRefused
from gradward.attacks.objectives import (
    batch_statistics_distance,
    cosine_distance,
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
        float(cosine_distance(simulated.parameter_updates, real)),
        float(gap / sum(b.square().sum() for b in real)),
        float(batch_statistics_distance(simulated.batch_statistics, statistics)),
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
    assert float(cosine_distance(a, a)) == pytest.approx(0)
    assert float(cosine_distance(a, b)) == pytest.approx(1)
    assert float(cosine_distance([torch.zeros(2)], b)) == pytest.approx(1)
    target = [(torch.tensor([0.0]), torch.tensor([4.0]))]
    shifted = [(torch.tensor([1.0]), torch.tensor([16.0]))]
    # Half a deviation in the mean, one deviation in the deviation.
    assert float(batch_statistics_distance(shifted, target)) == pytest.approx(0.25 + 1)
    ramp = torch.arange(4.0).expand(1, 5, 4, 4)
    assert float(total_variation(ramp)) == pytest.approx(1)
