"""BiDO's dependence terms against the formula written out, and what they do in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradward.defenses.bido import BidoLoss, gaussian_kernel, label_kernel, normalised_hsic
from gradward.training import BidoSettings, RawImages, TrainingSettings, train_locally

IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 6), nn.Tanh())
    return nn.Sequential(*body, nn.Linear(6, 3))


def kernel_by_hand(values: np.ndarray) -> np.ndarray:
    size, dimensions = len(values), values[0].size
    kernel = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            distance = np.sum((values[i] - values[j]) ** 2)
            kernel[i, j] = np.exp(-distance / (2 * (5 * np.sqrt(dimensions)) ** 2))
    return kernel


def hsic_by_hand(kernel: np.ndarray, other: np.ndarray) -> float:
    """As the authors' code has it: K H (K H + 1e-5 m I)^-1, centred on one side only."""
    size = len(kernel)
    centre = np.eye(size) - np.ones((size, size)) / size
    shares = [
        (k @ centre) @ np.linalg.inv(k @ centre + 1e-5 * size * np.eye(size))
        for k in (kernel, other)
    ]
    return float(np.sum(shares[0] * shares[1].T))


def loss_by_hand(model: nn.Module, settings: BidoSettings) -> float:
    """CE + lambda_x HSIC(x, z) - lambda_y HSIC(z, y), summed over the hidden layers."""
    of_images = kernel_by_hand(IMAGES.double().numpy())
    of_labels = (LABELS[:, None] == LABELS[None]).double().numpy()
    value = F.cross_entropy(model(IMAGES), LABELS).item()
    for name in settings.hidden_layers:
        hidden = model[: int(name) + 1](IMAGES).detach().double().numpy()
        kernel = kernel_by_hand(hidden)
        value += settings.lambda_x * hsic_by_hand(of_images, kernel)
        value -= settings.lambda_y * hsic_by_hand(kernel, of_labels)
    return value


def test_kernels_are_those_of_the_paper() -> None:
    values = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(2)) * 9
    np.testing.assert_allclose(gaussian_kernel(values), kernel_by_hand(values.double().numpy()))
    assert label_kernel(torch.tensor([2, 0, 2])).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_hsic_is_that_of_the_published_code() -> None:
    generator = torch.Generator().manual_seed(3)
    x, z = torch.randn(9, 5, generator=generator), torch.randn(9, 2, generator=generator)
    found = normalised_hsic(gaussian_kernel(x), gaussian_kernel(z))
    by_hand = hsic_by_hand(gaussian_kernel(x).numpy(), gaussian_kernel(z).numpy())
    assert float(found) == pytest.approx(by_hand, rel=1e-6)


def test_hsic_tells_dependence_from_independence() -> None:
    generator = torch.Generator().manual_seed(4)
    x, other = torch.randn(2, 64, 1, generator=generator)
    alone = normalised_hsic(gaussian_kernel(x), gaussian_kernel(other))
    bound = normalised_hsic(gaussian_kernel(x), gaussian_kernel(x**2))
    assert bound > 3 * alone > 0
    constant = normalised_hsic(gaussian_kernel(x), gaussian_kernel(torch.ones(64, 1)))
    assert float(constant) == pytest.approx(0, abs=1e-9)


def test_the_loss_is_the_formula_with_its_signs() -> None:
    model = network()
    for weights in ((0.0, 0.0), (0.7, 0.0), (0.0, 0.7), (0.05, 0.5)):
        settings = BidoSettings(("1", "4"), *weights)
        with BidoLoss(model, settings) as loss:
            value = loss(IMAGES, LABELS).item()
        assert value == pytest.approx(loss_by_hand(model, settings), rel=1e-4)


def dependences(model: nn.Module) -> tuple[float, float]:
    hidden = gaussian_kernel(model[:5](IMAGES).detach())
    return (
        float(normalised_hsic(gaussian_kernel(IMAGES), hidden)),
        float(normalised_hsic(hidden, label_kernel(LABELS))),
    )


def test_training_lowers_the_one_and_raises_the_other() -> None:
    trained = {}
    for name, weights in (("x", (2.0, 0.0)), ("y", (0.0, 2.0)), ("none", (0.0, 0.0))):
        model = network()
        settings = TrainingSettings(
            batch_size=12, steps=60, lr=0.05, bido=BidoSettings(("4",), *weights)
        )
        train_locally(model, RawImages(IMAGES, LABELS), settings, torch.Generator())
        trained[name] = dependences(model)
        assert not any(module._forward_hooks for module in model.modules()), "hooks are gone"
    assert trained["x"][0] < 0.8 * trained["none"][0]
    assert trained["y"][1] > 1.02 * trained["none"][1]


def test_a_single_last_image_adds_nothing_to_the_loss() -> None:
    model = network()
    with BidoLoss(model, BidoSettings(("1",))) as loss:
        value = loss(IMAGES[:1], LABELS[:1])
    torch.testing.assert_close(value, F.cross_entropy(model(IMAGES[:1]), LABELS[:1]))


def test_identical_images_give_finite_gradients() -> None:
    model = network()
    with BidoLoss(model, BidoSettings(("1",))) as loss:
        loss(IMAGES[:1].expand(4, -1, -1, -1), LABELS[:4]).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"hidden_layers": []}, ValueError, "hidden_layers"),
        ({"hidden_layers": "fc"}, TypeError, "hidden_layers"),
        ({}, TypeError, "hidden_layers"),
        ({"hidden_layers": ["1"], "lambda_x": -1.0}, ValueError, "lambda_x"),
        ({"hidden_layers": ["1"], "sigma": 1.0}, ValueError, "sigma"),
    ],
)
def test_wrong_settings_are_refused(
    values: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        TrainingSettings.from_dict({"bido": values})


def test_an_unknown_layer_is_told() -> None:
    with pytest.raises(ValueError, match="no layers"):
        BidoLoss(network(), BidoSettings(("body.9",)))


def test_it_is_kept_apart_from_what_contradicts_it() -> None:
    bido = {"hidden_layers": ["1"]}
    with pytest.raises(ValueError, match="batch_size"):
        TrainingSettings.from_dict({"bido": bido, "batch_size": 1})
    with pytest.raises(ValueError, match="dp_sgd"):
        TrainingSettings.from_dict({"bido": bido, "dp_sgd": {"noise_multiplier": 1.0}})
