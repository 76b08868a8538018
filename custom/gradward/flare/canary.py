"""Canaries: declared public images that a site trains on beside its own, to be attacked instead.

What both sides must agree on without being told, and what keeps a canary apart from the training
whose pipeline it shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from gradward.data import ImageSet, PublicSet
from gradward.flare.seeds import generator_for
from gradward.flare.site import Site
from gradward.training import Batch, BatchSource

CANARY_TASK = "canary_update"
CANARY_IMAGES_META = "canary_images"
TWIN_FOLDER = "canary"


def pinned_canaries(public: PublicSet, seed: int, site: str) -> ImageSet:
    """Return the canary part in the order in which ``site`` uses it, in every round of a job.

    Args:
        public: the declared public images, the same on server and site.
        seed: of the job.
        site: its name.
    """
    part = public.part("canary")
    order = torch.randperm(len(part), generator=generator_for(seed, "canary images", site))
    return part.subset(order)


def canary_positions(n_images: int, n_pinned: int) -> list[int]:
    """Return which pinned canary stands in for each image of a round, in order of first use.

    Args:
        n_images: different images that the site used in the round.
        n_pinned: canaries there are; where they do not suffice they are used over again.
    """
    return [number % n_pinned for number in range(n_images)]


class PinnedImages:
    """Canaries in place of a site's images: as many, in batches of the same sizes.

    The first image that a round uses is always the first pinned one, and so on. So the number of
    images used tells the server which they were, whoever drew the batches and by whatever seed.
    """

    def __init__(self, source: BatchSource, n_images: int) -> None:
        """Args: the pinned canaries as training shall see them; how many images the site has."""
        self._source = source
        self._n_images = n_images
        self._order: dict[int, int] = {}

    def __len__(self) -> int:
        return self._n_images

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the canaries that stand in for the images at ``indices``."""
        used = [self._order.setdefault(index, len(self._order)) for index in indices]
        positions = canary_positions(len(self._order), len(self._source))
        return self._source.batch([positions[number] for number in used])


def canary_twin(site: Site) -> Site:
    """Return the site with private folders of its own for whatever its canaries need.

    Secret, ledger, perturbers, records of rounds and the state of filters lie below them: with
    these a canary would draw on, or give away, what protects patients.
    """
    twin = replace(
        site, private=site.private / TWIN_FOLDER, job_folder=site.job_folder / TWIN_FOLDER
    )
    for folder in (twin.private, twin.job_folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return twin
