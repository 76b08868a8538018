"""An attacker's own networks, trained on images of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradward.data import ImageSet

BATCH = 16
_LR = 4e-3
_CHECKS = 10
_HELD_OUT = 0.2
_SHIFT = 2


class Examples(NamedTuple):
    """What an attacker sees, the mean of each image's class, and the images themselves."""

    seen: Tensor
    guesses: Tensor
    truths: Tensor


class ViewInverter(nn.Module):
    """A small U-Net from a perturbed picture and the mean of its class to the picture.

    It starts halfway between both and learns the difference, so that with little to learn from it
    is no worse than either.

    Args:
        channels: of the images.
        width: of its convolutions.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.trust = nn.Parameter(torch.tensor(0.5))
        self.fold, self.unfold = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
        self.first = nn.Conv2d(8 * channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.Conv2d(width + width // 2, width, 3, padding=1)
        self.last = nn.Conv2d(width, 4 * channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, seen: Tensor, guess: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` views and class means to pictures, not clipped."""
        shallow = F.silu(self.first(self.fold(torch.cat([seen, guess], dim=1))))
        deep = F.silu(self.deep(F.silu(self.down(shallow))))
        joined = torch.cat([shallow, self.unfold(deep)], dim=1)
        change: Tensor = self.unfold(self.last(F.silu(self.up(joined))))
        return guess + self.trust * (seen - guess) + change


class FeatureInverter(nn.Module):
    """From what an update shows of one image to the picture.

    Args:
        maps: ``(C, h, w)`` shape of the features that the last linear layer was fed with.
        rest: length of the vector that stands for all other layers.
        image: ``(C, H, W)`` shape of the pictures; H and W are multiples of h and w.
        width: of its convolutions.
    """

    def __init__(
        self, maps: tuple[int, int, int], rest: int, image: tuple[int, int, int], width: int = 24
    ) -> None:
        super().__init__()
        self.maps, self.scale = maps, image[1] // maps[1]
        self.mix = nn.Linear(rest, width)
        self.first = nn.Conv2d(maps[0] + width, 2 * width, 3, padding=1)
        self.second = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.last = nn.Conv2d(2 * width, image[0] * self.scale**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        self.unfold = nn.PixelShuffle(self.scale)

    def forward(self, seen: Tensor, guess: Tensor) -> Tensor:
        """Map ``(B, C h w + rest)`` vectors and class means to pictures, not clipped."""
        size = self.maps[0] * self.maps[1] * self.maps[2]
        maps = seen[:, :size].view(-1, *self.maps)
        rest = self.mix(seen[:, size:])[:, :, None, None].expand(-1, -1, *self.maps[1:])
        hidden = F.silu(self.second(F.silu(self.first(torch.cat([maps, rest], dim=1)))))
        change: Tensor = self.unfold(self.last(hidden))
        return guess + change


def fit_inverter(
    network: nn.Module,
    draw: Callable[[], Examples],
    check: Examples,
    steps: int,
) -> nn.Module:
    """Train ``network`` by Adam to give the truth; keep the state that does best on ``check``.

    Its answers are then shrunk to the class mean as far as that helps on ``check``.

    Args:
        network: maps what is seen and class means to pictures.
        draw: a batch, asked for at every step, so that its randomness can be fresh.
        check: held-out examples.
        steps: of the training.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    least, best = float("inf"), copy.deepcopy(network.state_dict())
    for step in range(steps):
        batch = draw()
        loss = F.mse_loss(network(batch.seen, batch.guesses), batch.truths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, steps // _CHECKS) == 0:
            with torch.no_grad():
                error = float(F.mse_loss(network(check.seen, check.guesses), check.truths))
            if error < least:
                least, best = error, copy.deepcopy(network.state_dict())
    network.load_state_dict(best)
    return _Shrunk(network.requires_grad_(False), check)


class _Shrunk(nn.Module):
    """A network whose pictures are drawn towards the class mean, as held-out examples advise.

    Where little can be learned a network learns its examples by heart, and a fraction of its answer
    is a better guess than all of it.
    """

    def __init__(self, network: nn.Module, check: Examples) -> None:
        super().__init__()
        self._network = network
        with torch.no_grad():
            change = network(check.seen, check.guesses) - check.guesses
        wanted = check.truths - check.guesses
        share = (change * wanted).sum() / change.square().sum().clamp_min(1e-12)
        self._share = float(share.clamp(0, 1))

    def forward(self, seen: Tensor, guess: Tensor) -> Tensor:
        change: Tensor = self._network(seen, guess) - guess
        return guess + self._share * change


def held_out(images: ImageSet, generator: torch.Generator) -> tuple[ImageSet, ImageSet]:
    """Return four fifths of the images to learn from and one fifth to check on."""
    order = torch.randperm(len(images), generator=generator)
    cut = int(_HELD_OUT * len(images))
    return images.subset(order[cut:]), images.subset(order[:cut])


def shifted(images: ImageSet, generator: torch.Generator) -> ImageSet:
    """Return the images moved by up to two pixels each way, edges repeated."""
    height, width = images.images.shape[2:]
    padded = F.pad(images.images, [_SHIFT] * 4, mode="replicate")
    rows, columns = torch.randint(2 * _SHIFT + 1, (2, len(images)), generator=generator).tolist()
    moved = [
        picture[:, r : r + height, c : c + width]
        for picture, r, c in zip(padded, rows, columns, strict=True)
    ]
    return ImageSet(torch.stack(moved), images.labels)
