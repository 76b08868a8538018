"""What a picture must keep to be worth training on, judged by a small local network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradward.defenses.seeding import seeded

_WIDEST = 8
_STEPS = 120
_BATCH = 64
_LR = 2e-3


class Teacher(nn.Module):
    """A small classifier with named features; it never leaves the site.

    Strided convolutions down to at most 8 pixels a side, then one at that size.

    Args:
        channels: of the images.
        num_classes: of the task.
        image_size: height and width, pixels.
    """

    def __init__(self, channels: int, num_classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        halvings = max(1, math.ceil(math.log2(max(image_size) / _WIDEST)))
        layers: list[nn.Module] = []
        wide = channels
        for step in range(halvings):
            out = min(32, 16 * 2**step)
            layers += [nn.Conv2d(wide, out, 5, stride=2, padding=2), nn.BatchNorm2d(out), nn.SiLU()]
            wide = out
        layers += [nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        sides = [math.ceil(side / 2**halvings) for side in image_size]
        self.head = nn.Linear(wide * sides[0] * sides[1], num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images ``(B, C, H, W)`` to features ``(B, F)`` and logits ``(B, K)``."""
        features = self.body(images)
        return features, self.head(features)


def fit_teacher(
    images: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator
) -> Teacher:
    """Train a teacher on clean images and freeze it.

    Args:
        images: ``(N, C, H, W)`` float32 in [0, 1].
        labels: ``(N,)`` int64.
        num_classes: of the task.
        generator: initial weights and batches.
    """
    height, width = images.shape[2:]
    with seeded(generator):
        teacher = Teacher(images.shape[1], num_classes, (height, width))
    optimizer = torch.optim.Adam(teacher.parameters(), lr=_LR)
    for _ in range(_STEPS):
        chosen = torch.randint(len(images), (_BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(teacher(images[chosen])[1], labels[chosen]).backward()
        optimizer.step()
    return teacher.eval().requires_grad_(False)
