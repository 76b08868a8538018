"""Networks, pictures and updates for the tests of the attacks."""

from __future__ import annotations

import copy
from functools import cache

import torch
from skimage import data
from torch import Tensor, nn

from gradward.attacks import Observation
from gradward.metrics.similarity import ssim
from gradward.training import (
    RawImages,
    State,
    TrainingSettings,
    state_copy,
    state_difference,
    train_locally,
)


class SmallNet(nn.Module):
    """Three convolutions with BatchNorm, and a fully connected head."""

    def __init__(self, classes: int = 4, width: int = 16, momentum: float | None = 0.1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for wide, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            layers += [
                nn.Conv2d(channels, wide, 3, stride, 1),
                nn.BatchNorm2d(wide, momentum=momentum),
                nn.ReLU(inplace=True),
            ]
            channels = wide
        self.body = nn.Sequential(*layers)
        self.fc = nn.Linear(channels * 64, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images).flatten(1))


def small_net(seed: int = 0, **options: object) -> SmallNet:
    torch.manual_seed(seed)
    return SmallNet(**options)  # type: ignore[arg-type]


@cache
def patches() -> Tensor:
    """Disjoint 32x32 patches ``(256, 3, 32, 32)``, row by row over a 512x512 histology picture."""
    picture = torch.tensor(data.immunohistochemistry() / 255.0, dtype=torch.float32)
    cut = picture.unfold(0, 32, 32).unfold(1, 32, 32)
    return cut.reshape(256, 3, 32, 32).contiguous()


def public_mean() -> Tensor:
    """The mean ``(3, 32, 32)`` of the patches in the picture's upper half."""
    return patches()[:128].mean(dim=0)


def train(
    model: nn.Module, images: Tensor, labels: Tensor, settings: TrainingSettings, seed: int = 0
) -> tuple[State, State, list[list[int]]]:
    """Return (global state, update, batches) of a real local training."""
    own = copy.deepcopy(model)
    before = state_copy(own)
    run = train_locally(
        own, RawImages(images, labels), settings, torch.Generator().manual_seed(seed)
    )
    return before, state_difference(state_copy(own), before), run.batches


def observe(
    model: nn.Module, images: Tensor, labels: Tensor, settings: TrainingSettings, seed: int = 0
) -> tuple[Observation, list[list[int]]]:
    before, update, batches = train(model, images, labels, settings, seed)
    return Observation.from_update(model, before, update), batches


def recovered(reconstruction: Tensor, truth: Tensor, prior: Tensor) -> float:
    """The recovered fraction of one picture."""
    ours, floor = (float(ssim(a[None], truth[None]).mean()) for a in (reconstruction, prior))
    return (ours - floor) / (1 - floor)
