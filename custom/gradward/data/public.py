"""Declared public images: what attacker and auditor may use, the same on server and sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradward.data.form import ImageForm
from gradward.data.images import DataError, ImageSet
from gradward.data.loading import open_source
from gradward.data.parts import PARTS, PublicParts


@dataclass(frozen=True)
class PublicSet:
    """Public images in parts that share no patient and no pixel.

    Attributes:
        name: the data set's name.
        licence: under which the images may be used.
        checksum: ``sha256:<hex>`` over the source pixels or files before any resizing, with their
            labels and parts; server and sites compare it.
        prior_image: ``(C, H, W)`` the attacker's first guess.
        mean_image: ``(C, H, W)`` mean of the decoys: what anyone could guess.
    """

    name: str
    licence: str
    checksum: str
    prior_image: Tensor
    mean_image: Tensor
    _parts: Mapping[str, ImageSet]

    @property
    def of_attacker(self) -> ImageSet:
        """What an attacker may learn from: the parts ``prior`` and ``fit``, with their labels.

        The others measure attacks: one that had seen them would be judged by what it was told.
        """
        parts = [self.part(name) for name in ("prior", "fit")]
        return ImageSet(
            torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
        )

    def part(self, part: str) -> ImageSet:
        """Return ``prior``, ``control``, ``decoys``, ``canary`` or ``fit``.

        Raises:
            DataError: there is no such part.
        """
        if part not in PARTS:
            raise DataError(f"a public set has the parts {', '.join(PARTS)}, not {part!r}")
        return self._parts[part]


def load_public_set(
    spec: Mapping[str, Any], *, name: str, image_size: tuple[int, int], channels: int
) -> PublicSet:
    """Load the public images that a data set declares.

    Args:
        spec: where the data is; its ``public`` section says which images are public (the embedded
            data has its own).
        name: the data set's name.
        image_size: height and width to resize to, pixels.
        channels: 1 or 3.

    Raises:
        DataError: none are declared, too few to fill each part, or a file cannot be used.
    """
    found: PublicParts = open_source(spec, name).public(ImageForm(image_size, channels))
    empty = [part for part in PARTS if not len(found.parts[part])]
    if empty:
        raise DataError(
            f"the public images of data set '{name}' do not suffice for {', '.join(empty)}; "
            "declare more of them"
        )
    prior = found.prior if found.prior is not None else found.parts["prior"].images.mean(dim=0)
    return PublicSet(
        name=name,
        licence=found.licence,
        checksum=found.checksum,
        prior_image=prior,
        mean_image=found.parts["decoys"].images.mean(dim=0),
        _parts=found.parts,
    )
