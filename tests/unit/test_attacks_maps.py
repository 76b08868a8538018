"""Maps that a convolution's gradient tells: solved, inverted, refused."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gradward.attacks import AttackSpec, Budget, Observation, control_update, run_portfolio
from gradward.attacks.budget import Allowance, Meter
from gradward.attacks.case import AttackCase
from gradward.attacks.control import withhold_alike
from gradward.attacks.maps import CLEAR, MapLoss
from gradward.attacks.patches import PatchSpace, geometries, told_patches
from gradward.attacks.portfolio import AttackResult
from gradward.batchnorm import is_batchnorm_buffer
from gradward.data.images import unlabelled
from gradward.training import State, TrainingSettings

from .attack_fixtures import patches, public_mean, recovered, train

ONE = TrainingSettings(batch_size=1, lr=0.05)
TRUTH, PRIOR = patches()[200], public_mean()


def wide_net(norm: bool = True, **convolution: object) -> nn.Module:
    """A network whose third convolution has 96 channels at 64 positions, and BatchNorm or not."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 16, 1), (16, 32, 2), (32, 96, 2)):
        extra = convolution if after == 96 else {}
        layers.append(nn.Conv2d(before, after, 3, stride, 1, **extra))  # type: ignore[arg-type]
        layers += [nn.BatchNorm2d(after), nn.ReLU()] if norm or after < 96 else [nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 64, 4))


def updates(model: nn.Module, withheld: bool = True) -> tuple[State, State, State]:
    """Return the global state, the victim's update and the control's."""
    before, update, _ = train(model, TRUTH[None], torch.tensor([1]), ONE)
    control = control_update(model, before, patches()[:8], torch.arange(8) % 4, ONE, 1, seed=0)
    if withheld:
        update = {name: value for name, value in update.items() if not is_batchnorm_buffer(name)}
    return before, update, withhold_alike(control, update)


def case_of(model: nn.Module, withheld: bool = True) -> AttackCase:
    before, update, _ = updates(model, withheld)
    seen = Observation.from_update(model, before, update)
    return AttackCase(seen, ONE, PRIOR, 1, [[0]], labels=None)


def granted(evaluations: int = 1) -> Allowance:
    return Allowance(Meter(Budget(evaluations)))


def attack(observation: Observation, **changes: object) -> AttackResult:
    arguments: dict = {"n_images": 1, "settings": ONE, "budget": Budget(60), **changes}
    arguments.setdefault("attacks", [AttackSpec("maps")])
    (result,) = run_portfolio(observation, prior=PRIOR, seed=0, **arguments)
    return result


def test_the_gradient_tells_the_map() -> None:
    model = wide_net()
    case = case_of(model)
    own = copy.deepcopy(model).train()
    geometry = geometries(own, PRIOR)["6"]
    with torch.no_grad():
        true, guess = (own[:6](image[None])[0] for image in (TRUTH, PRIOR))
    basis = told_patches(geometry, case.observation.parameter_update["6.weight"], CLEAR)
    assert basis is not None
    found = PatchSpace(geometry, basis).nearest(guess, granted())

    wanted = geometry.centred(true.double())
    scale = (wanted * found).sum() / found.square().sum()
    assert scale > 0
    assert (scale * found - wanted).norm() < 1e-2 * wanted.norm()


def test_the_loss_is_nothing_at_the_truth() -> None:
    for withheld in (True, False):
        loss = MapLoss(case_of(wide_net(), withheld), 1.0, granted())
        assert loss.layer == "6"
        at_truth, at_prior = (float(loss(image[None])) for image in (TRUTH, PRIOR))
        assert at_truth < 1e-4 < 0.05 < at_prior


@pytest.mark.parametrize("withheld", [True, False])
def test_it_recovers_the_picture_and_the_control_does_not(withheld: bool) -> None:
    model = wide_net()
    before, update, wrong = updates(model, withheld)
    real, control = (attack(Observation.from_update(model, before, one)) for one in (update, wrong))
    assert real.images is not None
    assert control.images is not None
    assert recovered(real.images[0], TRUTH, PRIOR) > 0.8
    assert recovered(control.images[0], TRUTH, PRIOR) < 0.1
    assert real.knowledge["labels"] == "lacked"


def test_a_prior_is_learned_where_public_images_are_given() -> None:
    seen = case_of(wide_net()).observation
    learning = {"attacks": [AttackSpec("maps", learned_prior=1e-3)]}
    assert attack(seen, **learning).reason == (
        "a learned prior needs public images and none are given; give some, or set learned_prior "
        "to 0"
    )
    result = attack(seen, public=unlabelled(patches()[:100]), budget=Budget(40), **learning)
    assert result.images is not None
    assert recovered(result.images[0], TRUTH, PRIOR) > 0.6
    assert result.knowledge["public_images"] == "given"


def test_the_same_seed_gives_the_same_picture() -> None:
    seen = case_of(wide_net()).observation
    first, again = (attack(seen, budget=Budget(10)) for _ in range(2))
    assert torch.equal(_images(first), _images(again))


def _images(result: AttackResult) -> Tensor:
    assert result.images is not None
    return result.images


def noisy(seen: Observation) -> Observation:
    generator = torch.Generator().manual_seed(0)
    noise = {
        name: 0.1 * value.norm() * torch.randn(value.shape, generator=generator)
        for name, value in seen.parameter_update.items()
    }
    return replace(
        seen,
        parameter_update={name: v + noise[name] for name, v in seen.parameter_update.items()},
    )


@pytest.mark.parametrize(
    ("model", "changes", "reason"),
    [
        (wide_net(), {"n_images": 2}, "2 images are more than the limit of 1"),
        (wide_net(), {"settings": replace(ONE, optimizer="adam")}, "no multiple of a gradient"),
        (wide_net(norm=False), {}, "none in front of BatchNorm has more channels than positions"),
        (wide_net(groups=2), {}, "no convolution's gradient tells its input"),
        (wide_net(padding_mode="reflect"), {}, "no convolution's gradient tells its input"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), {}, "no convolution's gradient tells"),
    ],
)
def test_what_it_cannot_attack_it_refuses(model: nn.Module, changes: dict, reason: str) -> None:
    result = attack(case_of(model).observation, **changes)
    assert result.status == "skipped"
    assert reason in str(result.reason)


def test_noise_on_the_update_ends_it() -> None:
    result = attack(noisy(case_of(wide_net()).observation))
    assert result.status == "skipped"
    assert "drown in noise" in str(result.reason)


def test_an_update_of_several_images_is_not_taken_for_one() -> None:
    """Their patches fill more directions than one image has positions."""
    model = wide_net()
    two = TrainingSettings(batch_size=2, lr=0.05)
    before, update, _ = train(model, patches()[200:202], torch.tensor([1, 2]), two)
    result = attack(Observation.from_update(model, before, update), settings=ONE)
    assert result.status == "skipped"
