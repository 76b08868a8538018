"""Images moved a little at random, and mixed in pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Movement:
    """How far a picture may be moved without becoming another class.

    Attributes:
        rotation: degrees to either side.
        scale: share by which either side may grow or shrink.
        shift: share of a side.
        shear: tangent of the angle.

    Raises:
        ValueError: with the offending value.
    """

    rotation: float = 10.0
    scale: float = 0.1
    shift: float = 0.06
    shear: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what would turn a picture inside out."""
        for name, most in (("rotation", 180.0), ("scale", 0.5), ("shift", 0.5), ("shear", 1.0)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in [0, {most}], got {getattr(self, name)}")


def draw_movements(count: int, limits: Movement, generator: torch.Generator) -> Tensor:
    """Draw affine maps, every parameter uniformly within its limits.

    Args:
        count: of maps.
        limits: of the parameters.
        generator: CPU generator.

    Returns:
        ``(count, 2, 3)``, as ``torch.nn.functional.affine_grid`` takes them.
    """

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * limit

    angle = uniform(limits.rotation * math.pi / 180)
    across, down = 1 + uniform(limits.scale), 1 + uniform(limits.scale)
    # Coordinates run from -1 to 1: a side is 2 long.
    first = [
        angle.cos() * across,
        uniform(limits.shear) - angle.sin(),
        uniform(2 * limits.shift),
    ]
    second = [angle.sin(), angle.cos() * down, uniform(2 * limits.shift)]
    return torch.stack([torch.stack(first, dim=1), torch.stack(second, dim=1)], dim=1)


def move(images: Tensor, movements: Tensor) -> Tensor:
    """Move images; what comes in from outside is their border.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        movements: ``(N, 2, 3)``, or ``(1, 2, 3)`` for all alike.

    Returns:
        Like ``images``.
    """
    maps = movements.expand(len(images), -1, -1)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False, padding_mode="border")
    return moved.clamp(0, 1)


def moved_at_random(images: Tensor, limits: Movement, generator: torch.Generator) -> Tensor:
    """Move each image ``(N, C, H, W)`` by a map of its own."""
    return move(images, draw_movements(len(images), limits, generator).to(images.device))


def mixed(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Blend a share of the pictures with others of the batch (Zhang et al. 2018, mixup).

    Half-way pictures are where a labelling that knows better differs from the public one.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        share: of pictures that are blended, in [0, 1].
        generator: CPU generator.

    Returns:
        Like ``images``.
    """
    weight = torch.rand(len(images), generator=generator)
    weight[torch.rand(len(images), generator=generator) >= share] = 1
    partner = torch.randperm(len(images), generator=generator)
    weight = weight[:, None, None, None]
    return weight * images + (1 - weight) * images[partner]
