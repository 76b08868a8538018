"""Networks of other people: whatever trains is attacked, or refused by its layer's name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradward.attacks import AttackRefused, AttackSpec, Budget, run_portfolio
from gradward.attacks.head import last_linear
from gradward.attacks.objectives import CosineDistance
from gradward.attacks.portfolio import AttackResult
from gradward.attacks.simulation import ClientSimulator
from gradward.metrics.similarity import psnr
from gradward.models import build_model
from gradward.training import TrainingSettings

from .attack_fixtures import observe, patches, public_mean, small_net

ONE = TrainingSettings(batch_size=1, lr=0.02)
FOUR = TrainingSettings(batch_size=4, lr=0.02)
TRUTH = patches()[200:204]
LABELS = torch.tensor([2, 0, 3, 1])


def attack(
    model: nn.Module, *names: str, n_images: int = 1, images: Tensor = TRUTH, evaluations: int = 6
) -> dict[str, AttackResult]:
    """Attack one step on the first images, of classes 2, 0, 3, 1 as far as the network has them."""
    settings = ONE if n_images == 1 else FOUR
    observation, _ = observe(model, images[:n_images], LABELS[:n_images], settings)
    results = run_portfolio(
        observation,
        prior=F.interpolate(public_mean()[None], images.shape[2:])[0],
        n_images=n_images,
        settings=settings,
        attacks=[AttackSpec(name) for name in names],
        budget=Budget(evaluations),
        seed=0,
    )
    return {result.attack: result for result in results}


def with_norm_behind(model: nn.Module) -> nn.Module:
    """Return a network whose last layers are a linear one, BatchNorm1d and another linear one."""
    return nn.Sequential(model, nn.Linear(4, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))


def shipped(name: str, size: int) -> nn.Module:
    return build_model(name, in_channels=3, num_classes=4, image_size=[size, size], seed=0)


# A client's single image of 32 pixels leaves these networks one pixel a channel at their end: it
# trains in batches of four.
@pytest.mark.parametrize(
    ("model", "size", "names"),
    [
        (with_norm_behind(small_net()), 32, ("features", "matching", "batchnorm", "spans")),
        (shipped("densenet121", 32), 32, ("features", "spans")),
        (shipped("resnet18", 16), 16, ("features", "spans")),
    ],
    ids=["norm in the head", "densenet121", "resnet18"],
)
def test_one_value_a_channel_of_one_image_is_no_hindrance_to_four(
    model: nn.Module, size: int, names: tuple[str, ...]
) -> None:
    images = F.interpolate(TRUTH, (size, size))
    results = attack(model, *names, n_images=4, images=images, evaluations=2)
    reasons = [result.reason for result in results.values()]
    assert not any("one value a channel" in reason for reason in reasons), reasons
    assert results["features"].status == "ok", reasons


class HeadFirst(nn.Module):
    """A network whose head is defined before its body."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.fc, self.body = copy.deepcopy(source.fc), copy.deepcopy(source.body)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images).flatten(1))


class WithSpare(nn.Module):
    """A network with a linear layer defined last that is never called."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.inner, self.spare = copy.deepcopy(source), nn.Linear(7, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)


class Bend(nn.Module):
    """A hidden linear layer between body and head, so that defining the head first matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4), nn.Flatten(), nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU()
        )
        self.fc = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images).flatten(1))


@pytest.mark.parametrize("other", [HeadFirst, WithSpare])
def test_the_order_of_definition_does_not_matter(other: type[nn.Module]) -> None:
    names = ("batchnorm", "features", "matching")
    expected, found = (attack(m, *names, n_images=4) for m in (Bend(), other(Bend())))
    for name in names:
        assert expected[name].loss is not None, expected[name].reason
        assert found[name].loss == pytest.approx(expected[name].loss, rel=1e-3), found[name].reason
        assert str(found[name].labels) == str(expected[name].labels)


def test_the_first_layer_is_the_one_that_is_called_first() -> None:
    torch.manual_seed(0)

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(256, 4), nn.Linear(3 * 32 * 32, 256)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(self.first(images.flatten(1)).relu())

    result = attack(Backwards(), "analytic")["analytic"]
    assert result.images is not None, result.reason
    assert float(psnr(result.images, TRUTH[:1])) > 60


class Attention(nn.Module):
    """Patches of the picture that look at each other, by torch's function or by its layer."""

    def __init__(self, layer: bool, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.embed = nn.Linear(16, 4), nn.Conv2d(3, 16, 8, 8)
        self.ask, self.look = nn.Linear(16, 16), None
        if layer:
            self.look = nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        if self.look is None:
            heads = self.ask(tokens).unflatten(2, (2, 8)).transpose(1, 2)
            looked = F.scaled_dot_product_attention(heads, heads, heads)
            tokens = looked.transpose(1, 2).flatten(2)
        else:
            tokens = self.look(tokens)
        return self.head(tokens.mean(1))


@pytest.mark.parametrize("n_images", [1, 4])
@pytest.mark.parametrize("layer", [False, True], ids=["function", "layer"])
def test_attention_is_attacked(layer: bool, n_images: int) -> None:
    results = attack(Attention(layer), "features", "matching", n_images=n_images, evaluations=30)
    for name, result in results.items():
        assert result.status == "ok", (name, result.reason)
        assert result.labels is None or result.labels.tolist() == sorted(LABELS[:n_images].tolist())
    observation, batches = observe(Attention(layer).double(), TRUTH.double(), LABELS, FOUR)
    simulated = ClientSimulator(observation, FOUR).run(TRUTH.double(), LABELS, batches)
    real = list(observation.parameter_update.values())
    assert float(CosineDistance(real)(simulated.parameter_updates)) < 1e-9


class Distances(nn.Module):
    """A network that looks at how far its patches are from each other, outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 16, 8, 8), nn.Linear(256, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return self.head(torch.cdist(tokens, tokens.roll(1, 1)).flatten(1))


def test_an_operator_without_a_second_derivative_is_named() -> None:
    results = attack(Distances(), "matching", "features")
    assert results["matching"].status == "skipped"
    assert "no derivative of _cdist_backward" in results["matching"].reason
    assert results["features"].status == "ok", "one derivative is enough for it"


class EachPosition(nn.Module):
    """A network whose head classifies each position, and which then takes their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).flatten(2).transpose(1, 2)).mean(1)


class Twice(nn.Module):
    """A network that asks its head for both halves of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 16 * 32, 4)

    def forward(self, images: Tensor) -> Tensor:
        upper, lower = images.flatten(2).chunk(2, dim=2)
        return self.head(upper.flatten(1)) + self.head(lower.flatten(1))


def frozen_head() -> nn.Module:
    model = small_net()
    model.fc.requires_grad_(False)
    return model


def weight_normed_head() -> nn.Module:
    model = small_net()
    nn.utils.parametrizations.weight_norm(model.fc)
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (EachPosition(), r"'head' gives \(16, 4\) of an image, and not the logits \(4,\)"),
        (Twice(), "'head' is called more than once"),
        (frozen_head(), "'fc' has no weight of its own that trains"),
        (weight_normed_head(), "'fc' has no weight of its own that trains"),
    ],
    ids=["each position", "twice", "frozen", "weight norm"],
)
def test_a_head_whose_gradient_tells_too_little_is_named(model: nn.Module, reason: str) -> None:
    with pytest.raises(AttackRefused, match=reason):
        last_linear(model, TRUTH[0])
    assert model.training and not any(len(m._forward_hooks) for m in model.modules())
