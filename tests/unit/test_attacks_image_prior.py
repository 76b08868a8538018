"""A prior learned from public images: what it knows, where it pays, when it is refused."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradward.attacks import (
    AttackRefused,
    AttackSpec,
    Budget,
    Observation,
    control_update,
    run_portfolio,
)
from gradward.attacks.image_prior import ImagePrior
from gradward.attacks.portfolio import AttackResult
from gradward.attacks.spec import LEARNING_ATTACKS
from gradward.data.images import unlabelled
from gradward.training import TrainingSettings, state_copy

from .attack_fixtures import observe

ONE = TrainingSettings(batch_size=1, lr=0.02)


def smooth(n_images: int, seed: int) -> Tensor:
    """Grey-blue fields of a few coarse waves: a kind of picture that can be learned."""
    waves = torch.randn(n_images, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    fields = nn.functional.interpolate(waves, 32, mode="bicubic")
    return (0.5 + 0.12 * fields * torch.tensor([1.0, 1.0, 1.5])[:, None, None]).clamp(0, 1)


TRUTH, CONTROL, PUBLIC = smooth(1, 0), smooth(20, 1), smooth(60, 2)
MEAN = PUBLIC.mean(0)


@cache
def narrow() -> nn.Module:
    """A network whose head sees 128 values of the 3072 of a picture."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 8)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 4))


def attack(observation: Observation, name: str, **changes: object) -> AttackResult:
    options = changes.pop("options", {"learned_prior": 0.3})
    arguments: dict = {"prior": MEAN, "n_images": 1, "public": PUBLIC, **changes}
    if arguments["public"] is not None:
        arguments["public"] = unlabelled(arguments["public"])
    (result,) = run_portfolio(
        observation,
        settings=ONE,
        attacks=[AttackSpec(name, **options)],  # type: ignore[arg-type]
        budget=Budget(60),
        seed=0,
        **arguments,
    )
    return result


@pytest.fixture(scope="module")
def one() -> Observation:
    return observe(narrow(), TRUTH, torch.tensor([2]), ONE)[0]


def error(result: AttackResult) -> float:
    assert result.images is not None
    return float((result.images - TRUTH).square().mean())


def power(images: Tensor) -> np.ndarray:
    """Power of each wave, by numpy's own transform, of images less their mean."""
    apart = (images - images.mean(0)).numpy()
    return np.abs(np.fft.fft2(apart)) ** 2


def test_it_draws_pictures_as_varied_as_the_public_ones() -> None:
    prior = ImagePrior(MEAN, PUBLIC)
    generator = torch.Generator().manual_seed(0)
    drawn = prior.images(torch.randn(300, prior.size, generator=generator))

    torch.testing.assert_close(drawn.mean(0).mean(), MEAN.mean(), atol=0.02, rtol=0)
    for low, high in ((0, 1), (1, 3), (3, 8)):
        ours, theirs = (power(images)[..., low:high, low:high].mean() for images in (drawn, PUBLIC))
        assert ours == pytest.approx(theirs, rel=0.35), (low, high)


def test_any_picture_can_be_reached() -> None:
    """Two public images span a line; the waves reach what lies off it."""
    prior = ImagePrior(MEAN, PUBLIC[:2])
    place = torch.zeros(1, prior.size, requires_grad=True)
    optimizer = torch.optim.LBFGS([place], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        loss = (prior.images(place) - TRUTH).square().mean()
        (place.grad,) = torch.autograd.grad(loss, place)
        return loss

    optimizer.step(closure)
    assert float(closure().detach()) < 1e-3


def test_grey_public_pictures_teach_grey() -> None:
    grey = PUBLIC[:, :1].expand(-1, 3, -1, -1)
    prior = ImagePrior(grey.mean(0), grey)
    drawn = prior.images(torch.randn(4, prior.size, generator=torch.Generator().manual_seed(0)))
    assert float((drawn - drawn.mean(1, keepdim=True)).abs().max()) < 1e-3


def test_it_helps_where_the_update_tells_little_and_the_control_stays_behind(
    one: Observation,
) -> None:
    model = narrow()
    wrong = control_update(model, state_copy(model), CONTROL, torch.arange(20) % 4, ONE, 1, seed=0)
    control = Observation.from_update(model, state_copy(model), wrong)

    plain, learned = attack(one, "features", options={}), attack(one, "features")
    assert error(learned) < 0.7 * error(plain)
    assert error(learned) < 0.7 * error(attack(control, "features"))
    assert plain.knowledge["public_images"] == "lacked"
    assert learned.knowledge["public_images"] == "given"


@pytest.mark.parametrize("name", LEARNING_ATTACKS)
def test_without_public_images_it_is_refused(one: Observation, name: str) -> None:
    for public, reason in (
        (None, "needs public images and none are given"),
        (PUBLIC[:1], "at least 2 public images, got 1"),
        (PUBLIC[:1].expand(3, -1, -1, -1), "all the same"),
    ):
        refused = attack(one, name, public=public)
        assert refused.status == "skipped" and reason in refused.reason
        plain = attack(one, name, public=public, options={})
        if name in ("maps", "spans"):
            assert "no convolution's gradient tells" in plain.reason, "of this network, at all"
        else:
            assert plain.status == "ok", "it is an option"


def test_restarts_and_several_images_begin_apart(one: Observation) -> None:
    result = attack(one, "batchnorm", options={"learned_prior": 0.3, "restarts": 2})
    first, second = (restart.images for restart in result.restarts)
    assert not torch.equal(first, second)
    two, _ = observe(narrow(), smooth(2, 3), torch.tensor([2, 1]), ONE)
    pair = attack(two, "batchnorm", n_images=2).images
    assert pair is not None and not torch.allclose(pair[0], pair[1], atol=1e-3)


def test_public_images_of_another_form_are_refused(one: Observation) -> None:
    with pytest.raises(ValueError, match=r"public images must be \(3, 32, 32\).*\(3, 16, 16\)"):
        attack(one, "features", public=PUBLIC[..., :16, :16])
    with pytest.raises(AttackRefused, match="give more"):
        ImagePrior(MEAN, PUBLIC[:0])
