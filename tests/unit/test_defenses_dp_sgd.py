"""DP-SGD against Opacus' own accountants, plain loops and a planted huge image."""

from __future__ import annotations

import json
import math

import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.stats import binomtest, kstest
from torch import nn
from torch.nn import functional as F

from gradward.defenses.dp_sgd import (
    EpsilonSpent,
    PrivacyAccount,
    PrivateRound,
    gradients_by_image,
    plan_round,
    poisson_batches,
    private_step,
)
from gradward.models import ModelError, build_model
from gradward.training import (
    DpSgdSettings,
    RawImages,
    TrainingSettings,
    state_copy,
    state_difference,
    train_locally,
)

IMAGES = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(20) % 2


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2)
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step_on(
    images: torch.Tensor,
    labels: torch.Tensor,
    noise: float = 0.0,
    clip: float = 0.1,
    seed: int = 0,
    augmentations: int = 1,
) -> torch.Tensor:
    """Return the change that one step with learning rate 1 and expected batch 1 makes."""
    model = network()
    before = state_copy(model)
    planned = PrivateRound(noise, 0.5, 1, 1.0, clip, augmentations)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    private_step(model, optimizer, planned, generator(seed))(images, labels)
    change = state_difference(state_copy(model), before)
    return torch.cat([value.flatten() for value in change.values()])


def test_gradients_by_image_are_those_of_a_loop() -> None:
    model = network()
    gradients, losses = gradients_by_image(model, IMAGES[:5, None], LABELS[:5])
    for index in range(5):
        model.zero_grad()
        loss = F.cross_entropy(model(IMAGES[index : index + 1]), LABELS[index : index + 1])
        loss.backward()
        torch.testing.assert_close(losses[index], loss.detach())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name][index], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_sum_is_of_clipped_gradients_also_over_several_chunks() -> None:
    labels = LABELS.repeat(2)
    images = torch.cat([IMAGES, 1 - IMAGES])
    gradients, _ = gradients_by_image(network(), images[:, None], labels)
    flat = torch.cat([value.flatten(1) for value in gradients.values()], dim=1)
    clipped = flat * (0.1 / flat.norm(dim=1, keepdim=True)).clamp(max=1)
    torch.testing.assert_close(step_on(images, labels), -clipped.sum(0), rtol=1e-3, atol=1e-5)


def test_one_image_moves_the_step_by_at_most_the_clip() -> None:
    huge = torch.cat([IMAGES[:6], 1e4 * IMAGES[6:7]])
    moved = (step_on(huge, LABELS[:7]) - step_on(IMAGES[:6], LABELS[:6])).norm()
    assert 0.09 < moved <= 0.1 + 1e-5

    def plain(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        model = network()
        F.cross_entropy(model(images), labels, reduction="sum").backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert (plain(huge, LABELS[:7]) - plain(IMAGES[:6], LABELS[:6])).norm() > 1, "planted"


def test_copies_count_as_one_image() -> None:
    model, copies = network(), IMAGES[:12].unflatten(0, (4, 3))
    gradients, losses = gradients_by_image(model, copies, LABELS[:4])
    for index in range(4):
        model.zero_grad()
        loss = F.cross_entropy(model(copies[index]), LABELS[index].expand(3))
        loss.backward()
        torch.testing.assert_close(losses[index], loss.detach())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name][index], parameter.grad, rtol=1e-4, atol=1e-6)
    # Clipped after their mean: four copies of one image move the step no further than one.
    alone = step_on(1e4 * IMAGES[:1], LABELS[:1], augmentations=4)
    assert 0.09 < alone.norm() <= 0.1 + 1e-5
    assert not torch.equal(alone, step_on(1e4 * IMAGES[:1], LABELS[:1])), "the copies are moved"
    nothing = step_on(IMAGES[:0], LABELS[:0], augmentations=4)
    assert nothing.abs().max() == 0


def test_the_noise_has_the_planned_deviation_also_without_images() -> None:
    empty = step_on(IMAGES[:0], LABELS[:0], noise=3.0, clip=0.5)
    assert kstest(empty.numpy() / 1.5, "norm").pvalue > 1e-3
    noise = step_on(IMAGES, LABELS, noise=3.0, clip=0.5) - step_on(IMAGES, LABELS, clip=0.5)
    assert kstest(noise.numpy() / 1.5, "norm").pvalue > 1e-3


def test_every_image_is_drawn_by_itself() -> None:
    planned = PrivateRound(1.0, 0.3, 400, 6.0, 1.0)
    batches = poisson_batches(20, planned, generator())
    assert len(batches) == 400 and len({len(batch) for batch in batches}) > 5
    for image in range(20):
        times = sum(image in batch for batch in batches)
        assert binomtest(times, 400, 0.3).pvalue > 1e-4
    assert poisson_batches(3, PrivateRound(1.0, 1.0, 2, 3.0, 1.0), generator()) == [[0, 1, 2]] * 2


@pytest.mark.parametrize("noise", [0.8, 1.5])
def test_epsilon_is_that_of_opacus(noise: float) -> None:
    settings = TrainingSettings(
        batch_size=8, epochs=2, dp_sgd=DpSgdSettings(noise_multiplier=noise, delta=1e-5)
    )
    planned = plan_round(settings, 200)
    assert planned.steps == 50 and planned.sampling_rate == 8 / 200
    account = PrivacyAccount.open(settings)
    for _ in range(3):
        account = account.spend(planned)
    renyi, numerical = RDPAccountant(), PRVAccountant()
    for _ in range(3 * 50):
        renyi.step(noise_multiplier=noise, sample_rate=8 / 200)
        numerical.step(noise_multiplier=noise, sample_rate=8 / 200)
    assert account.epsilon == pytest.approx(renyi.get_epsilon(delta=1e-5))
    exact = numerical.get_epsilon(delta=1e-5)
    assert exact - 0.02 < account.epsilon < 1.35 * exact, "an upper bound, and not a wild one"


def test_one_whole_batch_step_is_the_gaussian_mechanism() -> None:
    account = PrivacyAccount(1e-5).spend(PrivateRound(2.0, 1.0, 1, 5.0, 1.0))
    # Renyi divergence alpha / (2 sigma^2), converted by Balle et al. 2020 (arXiv 1905.09982).
    orders = [1 + x / 100 for x in range(1, 10_000)]
    closed = min(
        a / 8 + math.log((a - 1) / a) - (math.log(1e-5) + math.log(a)) / (a - 1) for a in orders
    )
    assert account.epsilon == pytest.approx(closed, rel=0.01)


def test_the_noise_is_calibrated_to_the_whole_job() -> None:
    private = DpSgdSettings(epsilon=4.0, rounds=3, delta=1e-5)
    settings = TrainingSettings(batch_size=8, dp_sgd=private)
    planned = plan_round(settings, 100)
    account = PrivacyAccount.open(settings)
    spent = []
    for _ in range(3):
        stored = json.loads(json.dumps(account.to_dict()))
        account = PrivacyAccount.from_dict(stored).spend(planned)
        spent.append(account.epsilon)
    assert spent == sorted(spent) and 3.9 < spent[-1] <= 4.0
    with pytest.raises(EpsilonSpent, match=r"4\.0"):
        account.spend(planned)


def test_a_delta_that_promises_nothing_is_refused() -> None:
    settings = TrainingSettings(dp_sgd=DpSgdSettings(noise_multiplier=1.0, delta=0.01))
    with pytest.raises(ValueError, match="delta"):
        plan_round(settings, 100)
    with pytest.raises(ValueError, match="images"):
        plan_round(settings, 0)


PRIVATE = TrainingSettings(
    batch_size=5, lr=0.05, dp_sgd=DpSgdSettings(noise_multiplier=1.0, delta=1e-3)
)


def test_training_needs_a_secret_that_the_server_cannot_repeat() -> None:
    source = RawImages(IMAGES, LABELS)
    with pytest.raises(ValueError, match="secret"):
        train_locally(network(), source, PRIVATE, generator())
    first, again, other = network(), network(), network()
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        run = train_locally(model, source, PRIVATE, generator(7), secret=generator(seed))
        assert len(run.batches) == 4 == PRIVATE.number_of_steps(20)
        assert run.raw_samples == sum(map(len, run.batches))
        assert len(run.losses) == sum(map(bool, run.batches))
    one, two, three = (next(iter(model.parameters())) for model in (first, again, other))
    assert torch.equal(one, two) and not torch.allclose(one, three)


def test_it_learns_where_the_noise_is_small() -> None:
    images = IMAGES * 0.2 + 0.8 * LABELS[:, None, None, None]
    settings = TrainingSettings(
        batch_size=10,
        epochs=30,
        lr=0.5,
        dp_sgd=DpSgdSettings(noise_multiplier=0.3, delta=1e-3),
    )
    model = network()
    train_locally(model, RawImages(images, LABELS), settings, generator(), secret=generator(1))
    assert (model(images).argmax(1) == LABELS).float().mean() > 0.9


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(8), nn.InstanceNorm2d(8, track_running_stats=True)]
)
def test_layers_that_mix_images_are_refused_with_the_remedy(layer: nn.Module) -> None:
    model = network()
    model[1] = layer
    with pytest.raises(ModelError, match="GroupNorm"):
        train_locally(model, RawImages(IMAGES, LABELS), PRIVATE, generator(), secret=generator(1))


@pytest.mark.parametrize("name", ["bn_cnn", "resnet18"])
def test_the_remedy_works(name: str) -> None:
    size = {"in_channels": 1, "num_classes": 2, "image_size": [16, 16], "seed": 0}
    model = build_model(name, norm="group", **size)
    images = F.interpolate(IMAGES[:3], 16)
    planned = PrivateRound(0.5, 0.5, 1, 3.0, 1.0)
    before = state_copy(model)
    step = private_step(model, torch.optim.SGD(model.parameters(), 0.1), planned, generator())
    assert torch.isfinite(step(images, LABELS[:3]))
    assert all(value.any() for value in state_difference(state_copy(model), before).values())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "exactly one"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0, "rounds": 2}, "exactly one"),
        ({"epsilon": 1.0}, "rounds"),
        ({"noise_multiplier": 1.0, "rounds": 2}, "rounds"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": 1.0, "delta": 1.0}, "delta"),
        ({"noise_multiplier": 1.0, "max_grad_norm": -1.0}, "max_grad_norm"),
        ({"noise_multiplier": 1.0, "clip": 1.0}, "clip"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainingSettings.from_dict({"dp_sgd": values})
