"""Images are read off a first fully connected layer, and refusals name what is in the way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradward.attacks import AttackSpec, Budget, run_portfolio
from gradward.attacks.portfolio import AttackResult
from gradward.metrics.similarity import psnr, ssim_matrix
from gradward.training import TrainingSettings

from .attack_fixtures import observe, patches, small_net

PICTURES = patches()[130:138]
LABELS = torch.arange(8) % 4


class Scaled(nn.Module):
    """Standardises its input, as networks for pictures do."""

    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.5) / 0.2


def perceptron(*front: nn.Module, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(3 * 32 * 32, 1024, bias=bias), nn.ReLU(), nn.Linear(1024, 4)]
    return nn.Sequential(*front, *layers)


def analytic(model: nn.Module, n_images: int, settings: TrainingSettings) -> AttackResult:
    observation, _ = observe(model, PICTURES[:n_images], LABELS[:n_images], settings)
    (result,) = run_portfolio(
        observation,
        prior=torch.zeros(3, 32, 32),
        n_images=n_images,
        settings=settings,
        attacks=[AttackSpec("analytic")],
        budget=Budget(1),
        seed=0,
    )
    return result


@pytest.mark.parametrize("front", [(), (Scaled(),)], ids=["plain", "standardised"])
@pytest.mark.parametrize("steps", [1, 3])
def test_one_image_is_exact(front: tuple[nn.Module, ...], steps: int) -> None:
    settings = TrainingSettings(batch_size=1, lr=0.1, steps=steps, momentum=0.5)
    result = analytic(perceptron(*front), 1, settings)
    assert result.images is not None
    assert float(psnr(result.images, PICTURES[:1])) >= 100
    assert set(result.knowledge.values()) == {"lacked"}


def test_a_batch_comes_out_image_by_image() -> None:
    result = analytic(perceptron(), 4, TrainingSettings(batch_size=4, lr=0.1))
    assert result.images is not None and result.loss is not None
    assert len(result.images) == 4
    best = ssim_matrix(result.images, PICTURES[:4]).max(dim=0)
    assert float(best.values.min()) > 0.99
    assert len(set(best.indices.tolist())) == 4, "no image comes twice"
    assert result.loss < 1e-6


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (small_net(), "'fc' does not see the picture itself"),
        (perceptron(bias=False), "'1' has no bias"),
        (nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten()), "no linear layer"),
        (perceptron(nn.MaxPool2d(1, 1), nn.ReLU6(), nn.Hardtanh(0, 0.5)), "'4' does not see"),
    ],
    ids=["convolutions", "no bias", "no linear layer", "clipped"],
)
def test_refusals(model: nn.Module, reason: str) -> None:
    result = analytic(model, 1, TrainingSettings(batch_size=1, lr=0.1))
    assert result.status == "skipped"
    assert reason in result.reason
