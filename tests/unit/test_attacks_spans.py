"""Several images from what their patches span together: measured, inverted, refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.linalg import subspace_angles
from torch import nn

from gradward.attacks import AttackSpec, Budget, Observation, control_update, run_portfolio
from gradward.attacks.budget import Allowance, Meter
from gradward.attacks.case import AttackCase
from gradward.attacks.control import withhold_alike
from gradward.attacks.portfolio import AttackResult
from gradward.attacks.search_space import PixelSpace
from gradward.attacks.spans import SpanLoss, left_out
from gradward.batchnorm import is_batchnorm_buffer
from gradward.data.images import unlabelled
from gradward.training import TrainingSettings

from .attack_fixtures import patches, public_mean, train

TWO = TrainingSettings(batch_size=2, lr=0.05)
ONE = replace(TWO, batch_size=1)
TRUTH, LABELS, PRIOR = patches()[200:202], torch.tensor([1, 2]), public_mean()


def wide_net() -> nn.Module:
    """A network whose third convolution has more channels than two images have positions."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 24, 2), (24, 64, 2), (64, 96, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 4))


def observed(
    settings: TrainingSettings = TWO, withheld: bool = False
) -> tuple[Observation, Observation]:
    """Return what is seen of the victims and of the control."""
    model = wide_net()
    before, update, _ = train(model, TRUTH, LABELS, settings)
    wrong = control_update(
        model, before, patches()[128:136], torch.arange(8) % 4, settings, 2, seed=0
    )
    if withheld:
        update = {name: value for name, value in update.items() if not is_batchnorm_buffer(name)}
        wrong = withhold_alike(wrong, update)
    victims, control = (Observation.from_update(model, before, one) for one in (update, wrong))
    return victims, control


def attack(seen: Observation, **changes: object) -> AttackResult:
    arguments: dict = {"n_images": 2, "settings": TWO, "budget": Budget(150), **changes}
    arguments.setdefault("attacks", [AttackSpec("spans")])
    (result,) = run_portfolio(seen, prior=PRIOR, seed=0, **arguments)
    return result


def test_what_is_left_out_is_the_squared_sine_of_the_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(40, 5, generator=generator))
    rows = torch.randn(5, 40, generator=generator) + 2 * basis.T
    sines = torch.tensor(subspace_angles(basis.numpy(), rows.T.numpy())).sin()
    assert float(left_out(basis, rows)) == pytest.approx(float(sines.square().mean()), abs=2e-3)
    mixed = torch.randn(5, 5, generator=generator) @ basis.T
    assert float(left_out(basis, mixed)) < 0.02


@pytest.mark.parametrize("withheld", [True, False])
@pytest.mark.parametrize("batches", [[[0, 1]], [[0], [1]]])
def test_next_to_nothing_is_left_out_at_the_truth(batches: list[list[int]], withheld: bool) -> None:
    settings = replace(TWO, batch_size=len(batches[0]), lr=1e-4)
    model = wide_net()
    before, update, order = train(model, TRUTH, LABELS, settings)
    if withheld:
        update = {name: value for name, value in update.items() if not is_batchnorm_buffer(name)}
    seen = Observation.from_update(model, before, update)
    case = AttackCase(seen, settings, PRIOR, 2, batches, labels=None)
    loss = SpanLoss(case, bn_weight=1.0)
    truth = TRUTH[torch.tensor([i for batch in order for i in batch])]
    guess = case.copies_of_prior(0.02, torch.Generator().manual_seed(0))
    assert float(loss(truth)) < 0.01 < 0.1 < float(loss(guess))


def test_from_nearby_it_finds_both_pictures_and_not_by_the_controls_update() -> None:
    """From the prior that takes a trained network of real size: benchmarks/attacks.py."""
    start = TRUTH + 0.1 * torch.randn(TRUTH.shape, generator=torch.Generator().manual_seed(0))
    errors = []
    for seen in observed():
        case = AttackCase(seen, TWO, PRIOR, 2, [[0, 1]], labels=None)
        loss = SpanLoss(case, bn_weight=1.0)
        space = PixelSpace(start, tv_weight=1e-4)
        images = space.descend(loss, start, Allowance(Meter(Budget(150))))[1]
        errors.append(float((images - TRUTH).square().mean()))
    near, control = errors
    assert near < 0.5 * 0.1**2 < 0.1**2 < control


def test_noise_hides_a_part_of_the_space_and_leaves_the_rest_to_search_by() -> None:
    """Where maps, which wants the whole space, has to give up."""
    model, generator = wide_net(), torch.Generator().manual_seed(0)
    before, update, _ = train(model, TRUTH[:1], LABELS[:1], ONE)
    weight = update["6.weight"]
    draw = torch.randn(weight.shape, generator=generator)
    update["6.weight"] = weight + 0.02 * weight.norm() * draw / draw.norm()
    seen = Observation.from_update(model, before, update)
    refused = attack(seen, n_images=1, settings=ONE, attacks=[AttackSpec("maps")])
    assert refused.status == "skipped"
    case = AttackCase(seen, ONE, PRIOR, 1, [[0]], labels=None)
    start = TRUTH[:1] + 0.1 * torch.randn(TRUTH[:1].shape, generator=generator)
    loss = SpanLoss(case, bn_weight=1.0)
    space = PixelSpace(start, tv_weight=1e-4)
    images = space.descend(loss, start, Allowance(Meter(Budget(100))))[1]
    assert float((images - TRUTH[:1]).square().mean()) < 0.5 * 0.1**2


def test_a_learned_prior_leads_the_search() -> None:
    learning = {"attacks": [AttackSpec("spans", learned_prior=0.3)], "budget": Budget(40)}
    result = attack(observed()[0], public=unlabelled(patches()[:100]), **learning)
    assert result.status == "ok"
    assert (result.knowledge["labels"], result.knowledge["public_images"]) == ("lacked", "given")


def test_without_public_images_no_prior_is_learned() -> None:
    result = attack(observed()[0], attacks=[AttackSpec("spans", learned_prior=0.3)])
    assert "a learned prior needs public images" in result.reason


def test_the_same_seed_gives_the_same_pictures() -> None:
    victims, _ = observed()
    first, again = (attack(victims, budget=Budget(10)).images for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_images": 6, "settings": replace(TWO, batch_size=6)}, "than positions of all images"),
        ({"settings": replace(TWO, optimizer="adam")}, "no multiple of a gradient"),
        ({"n_images": 40, "settings": replace(TWO, batch_size=40)}, "more than the limit of 32"),
    ],
)
def test_what_it_cannot_attack_it_refuses(changes: dict, reason: str) -> None:
    result = attack(observed()[0], **changes)
    assert result.status == "skipped"
    assert reason in result.reason


def test_images_that_come_again_are_refused() -> None:
    settings = replace(TWO, epochs=2)
    result = attack(observed(settings)[0], settings=settings)
    assert result.status == "skipped"
    assert "come again" in result.reason
