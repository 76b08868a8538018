"""Pictures to perturb that need no data: bright spots whose side is the class."""

from __future__ import annotations

from functools import cache

import torch

from gradward.data import ImageSet
from gradward.defenses.autoencoder import AutoencoderSettings, ConvAutoencoder, fit_autoencoder
from gradward.defenses.latent import ClassLatent, fit_latent
from gradward.defenses.seeding import seeded

SIDE = 16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spots(count: int, seed: int, patients: bool = False) -> ImageSet:
    """Two spots of random place, width and brightness; class 0 has them left, class 1 right."""
    draw = generator(seed)
    labels = torch.arange(count) % 2
    axis = torch.arange(SIDE) / (SIDE - 1)
    images = torch.zeros(count, SIDE, SIDE)
    for _ in range(2):
        place, shape = (torch.rand(count, 2, generator=draw) for _ in range(2))
        x = 0.1 + 0.3 * place[:, 0] + 0.5 * labels
        width = 0.01 + 0.02 * shape[:, 0]
        distance = (axis[None, None] - x[:, None, None]) ** 2
        distance = distance + (axis[None, :, None] - 0.1 - 0.8 * place[:, 1, None, None]) ** 2
        bright = (0.4 + 0.5 * shape[:, 1])[:, None, None]
        images = torch.maximum(images, bright * torch.exp(-distance / width[:, None, None]))
    names = tuple(f"patient {seed} {i // 4}" for i in range(count)) if patients else None
    return ImageSet(images[:, None], labels, names)


@cache
def small_latent(conditional: bool = True) -> ClassLatent:
    """A latent fitted on 240 spots in about two seconds; do not change it."""
    images = spots(240, 1)
    with seeded(generator(2)):
        model = ConvAutoencoder(1, (SIDE, SIDE))
    fit_autoencoder(model, images.images, AutoencoderSettings(steps=120), generator(3))
    return fit_latent(model, images.images, images.labels, 2, conditional=conditional)
