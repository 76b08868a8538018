"""Networks that look for the picture, or its class, behind a view."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradward.defenses.latent import ClassLatent
from gradward.defenses.seeding import seeded


def class_means(images: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the mean image of each class ``(K, C, H, W)``; of all where a class is missing."""
    own = [labels == k for k in range(num_classes)]
    return torch.stack([images[rows if bool(rows.any()) else slice(None)].mean(0) for rows in own])


class LatentAdversary(nn.Module):
    """Wiener filter plus a multilayer perceptron on view and class, through the site's decoder.

    Args:
        latent: whose decoder it uses.
        num_classes: of the task.
        generator: initial weights.
    """

    def __init__(self, latent: ClassLatent, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self._latent = latent
        self._classes = num_classes
        r = latent.dimensions
        with seeded(generator):
            last = nn.Linear(384, r)
            self.correction = nn.Sequential(
                nn.Linear(r + num_classes, 384), nn.SiLU(), nn.Linear(384, 384), nn.SiLU(), last
            )
        # It starts close to the Wiener filter, which is already good.
        with torch.no_grad():
            last.weight.mul_(0.1)

    def forward(self, view: Tensor, labels: Tensor, gate: Tensor) -> Tensor:
        """Map views ``(B, r)`` to images ``(B, C, H, W)`` in [0, 1]."""
        known = F.one_hot(labels, self._classes).to(view)
        return self._latent.decode(
            gate * view + self.correction(torch.cat([view, known], 1)), labels
        )


class PictureAdversary(nn.Module):
    """A small U-Net from the perturbed picture, and its class's mean, to the picture.

    It corrects the mean, so that it starts as good as guessing.

    Args:
        class_means: ``(K, C, H, W)`` in [0, 1].
        generator: initial weights.
    """

    class_means: Tensor

    def __init__(self, class_means: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("class_means", class_means)
        channels, height, width = class_means.shape[1:]
        # 14 to 28 pixels a side are left for the convolutions.
        self._fold = 2 ** max(1, math.floor(math.log2(max(height, width) / 14)))
        deep = channels * self._fold**2
        with seeded(generator):
            self.enter = nn.Conv2d(2 * deep, 32, 3, padding=1)
            self.down = nn.Conv2d(32, 48, 3, stride=2, padding=1)
            self.middle = nn.Conv2d(48, 48, 3, padding=1)
            self.up = nn.Conv2d(32 + 12, 32, 3, padding=1)
            self.leave = nn.Conv2d(32, deep, 3, padding=1)
        nn.init.zeros_(self.leave.weight)

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """Map perturbed pictures ``(B, C, H, W)`` to images of the same shape in [0, 1]."""
        mean = self.class_means[labels]
        height, width = pictures.shape[2:]
        multiple = 2 * self._fold
        both = F.pad(
            torch.cat([pictures, mean], 1),
            (0, -width % multiple, 0, -height % multiple),
            mode="replicate",
        )
        wide = F.silu(self.enter(F.pixel_unshuffle(both, self._fold)))
        deep = F.silu(self.middle(F.silu(self.down(wide))))
        out = F.silu(self.up(torch.cat([wide, F.pixel_shuffle(deep, 2)], 1)))
        correction = F.pixel_shuffle(self.leave(out), self._fold)[..., :height, :width]
        # No clamp while it trains: where it is active, nothing is learned.
        images = mean + correction
        return images if self.training else images.clamp(0, 1)
