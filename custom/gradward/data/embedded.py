"""Histology patches cut from a picture that scikit-image ships: data that is always there.

The picture (512 x 512 RGB, no known copyright restrictions) shows colonic glands, FHL2 stained
brown with DAB; a patch of 32 x 32 is positive where more than half of it is stained. Its quadrants
never share a pixel: two for the sites, one for validation and testing, one public.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry
from skimage.filters import threshold_otsu

from gradward.data.form import ImageForm
from gradward.data.images import DataError, ImageSet
from gradward.data.parts import PARTS, Checksum, PublicParts
from gradward.data.spec import check_keys

PATCH = 32
QUADRANT = 256
STRIDE = 16
# Row and column of the top left pixel. Top left and bottom right hold 71 positives of 128.
_SITE_QUADRANTS = ((0, 0), (256, 256))
_TEST_QUADRANT = (256, 0)
_PUBLIC_QUADRANT = (0, 256)
# Rectangles (top, left, height, width) in steps of `STRIDE`, disjoint so that overlapping patches
# of two parts never share a pixel, placed so that each has both classes. A rectangle of h x w
# holds (h - 1) * (w - 1) patches.
PUBLIC_REGIONS = {
    "decoys": (0, 8, 16, 8),
    "fit": (0, 0, 8, 8),
    "control": (8, 0, 4, 4),
    "canary": (8, 4, 4, 4),
    "prior": (12, 0, 4, 8),
}
SITE_SHARES = {"site-1": 1, "site-2": 32, "site-3": 48, "site-4": 16, "site-5": 16, "site-6": 15}
_LICENCE = "scikit-image immunohistochemistry: no known copyright restrictions"


@lru_cache(maxsize=1)
def _picture() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the picture ``(512, 512, 3)`` and where it is stained ``(512, 512)``."""
    picture = immunohistochemistry()
    stain = rgb2hed(picture)[..., 2]
    return picture, stain > threshold_otsu(stain)


def _cut(corners: list[tuple[int, int]]) -> ImageSet:
    """Cut the patches whose top left pixels are ``corners``, with their labels."""
    picture, stained = _picture()
    windows = [np.s_[r : r + PATCH, c : c + PATCH] for r, c in corners]
    pixels = torch.from_numpy(np.stack([picture[w] for w in windows])).permute(0, 3, 1, 2)
    labels = torch.tensor([int(stained[w].mean() > 0.5) for w in windows])
    names = tuple(f"immunohistochemistry[row {r}][column {c}]" for r, c in corners)
    return ImageSet(pixels.float() / 255, labels, names=names)


def _quadrant(top: int, left: int) -> list[tuple[int, int]]:
    steps = range(0, QUADRANT, PATCH)
    return [(top + r, left + c) for r in steps for c in steps]


def _shuffled(corners: list[tuple[int, int]]) -> list[tuple[int, int]]:
    # numpy freezes RandomState's streams for good, which it does not do for its other generators.
    return [corners[i] for i in np.random.RandomState(0).permutation(len(corners))]


class EmbeddedSource:
    """The histology patches.

    Args:
        spec: ``{"format": "embedded"}``.
        name: the data set's name, for messages.

    Raises:
        DataError: unknown settings.
    """

    def __init__(self, spec: Mapping[str, Any], name: str) -> None:
        self._name = name
        check_keys(spec, ("format", "name"), f"data set '{name}'")

    def split(self, split: str, site: str, form: ImageForm) -> ImageSet:
        """Return a split in ``form``; the site shares are fixed blocks of 128 shuffled patches.

        Raises:
            DataError: training of a site that has no share.
        """
        if split != "training":
            half = _shuffled(_quadrant(*_TEST_QUADRANT))
            middle = len(half) // 2
            corners = half[:middle] if split == "validation" else half[middle:]
            return form.fit_set(_cut(corners))
        if site not in SITE_SHARES:
            raise DataError(
                f"data set '{self._name}' has training images for {', '.join(SITE_SHARES)}, not "
                f"for '{site}'; use one of these site names or give the site its own data"
            )
        corners = _shuffled([corner for q in _SITE_QUADRANTS for corner in _quadrant(*q)])
        sites = list(SITE_SHARES)
        start = sum(SITE_SHARES[other] for other in sites[: sites.index(site)])
        return form.fit_set(_cut(corners[start : start + SITE_SHARES[site]]))

    def public(self, form: ImageForm) -> PublicParts:
        """Return the patches of the public quadrant, at stride 16, in disjoint regions."""
        checksum = Checksum()
        parts = {}
        for part in PARTS:
            patches = _cut(public_corners(part))
            for image, label in zip(patches.images, patches.labels.tolist(), strict=True):
                checksum.add(part, (image * 255).round().byte().numpy().tobytes(), label)
            parts[part] = form.fit_set(patches)
        return PublicParts(parts, str(checksum), _LICENCE)


def public_corners(part: str) -> list[tuple[int, int]]:
    """Return the top left pixels ``(row, column)`` of the patches of a public part."""
    top, left, height, width = PUBLIC_REGIONS[part]
    origin_row, origin_column = _PUBLIC_QUADRANT
    return [
        (origin_row + (top + r) * STRIDE, origin_column + (left + c) * STRIDE)
        for r in range(height - 1)
        for c in range(width - 1)
    ]
