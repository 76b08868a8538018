"""Victims, public images and what a global model is trained on, disjoint by patient."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from gradward.data import (
    ImageSet,
    data_root,
    dataset_spec,
    load_public_set,
    load_split,
)

# Whose images are attacked, and whose the global model was trained on. The first site has a
# single image and is the first victim of the cases of one image.
_XRAY = (("site-9", "site-5", "site-1", "site-6"), ("site-2", "site-3", "site-7"))
_HISTOLOGY = (("site-1", "site-2", "site-3"), ("site-4", "site-5", "site-6"))


@dataclass(frozen=True)
class Pictures:
    """What every case takes its images from.

    Attributes:
        name: of the data set.
        num_classes: of its true labels.
        victims: images under attack, a one-image site's first.
        training: what a global model is trained on.
        control: declared public images, whose update is the control.
        prior: ``(C, H, W)``, mean of public images.
        public: ``(N, C, H, W)``, what attackers may learn from.
    """

    name: str
    num_classes: int
    victims: ImageSet
    training: ImageSet
    control: ImageSet
    prior: Tensor
    public: Tensor

    def victims_of(self, picture: int, n_images: int) -> tuple[Tensor, Tensor]:
        """Return the ``picture``-th group of images and their true labels.

        Raises:
            IndexError: there are not so many.
        """
        start = picture * n_images + (n_images > 1)
        if start + n_images > len(self.victims):
            raise IndexError(f"there are no {picture + 1} groups of {n_images} images")
        chosen = self.victims.subset(range(start, start + n_images))
        return chosen.images, chosen.labels


@cache
def load_pictures(side: int) -> Pictures:
    """Load grey pictures of ``side`` x ``side`` pixels: chest X-rays, else embedded histology."""
    root = data_root()
    xray = root is not None and (root / "cxr224").is_dir()
    name, classes = ("chest-xray", 3) if xray else ("histology", 2)
    spec, size = dataset_spec(name), (side, side)

    def of_sites(names: tuple[str, ...]) -> ImageSet:
        sites = [load_split(spec, "training", site=s, image_size=size, channels=1) for s in names]
        return ImageSet(
            torch.cat([site.images for site in sites]), torch.cat([site.labels for site in sites])
        )

    victims, training = map(of_sites, _XRAY if xray else _HISTOLOGY)
    public = load_public_set(spec, name=name, image_size=size, channels=1)
    return Pictures(
        name,
        classes,
        victims,
        training,
        public.part("control"),
        public.prior_image,
        public.attacker_images,
    )


def seeded(*numbers: int) -> torch.Generator:
    """Return a CPU generator of its own for these numbers."""
    seed = 0
    for number in numbers:
        seed = seed * 1009 + number + 1
    return torch.Generator().manual_seed(seed)
