"""The size and the number of channels that a network wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gradward.data.images import DataError, ImageSet

# ITU-R BT.601, the weights PIL uses for its "L".
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ImageForm:
    """What every image of a run is brought to.

    Attributes:
        size: height and width, pixels.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        DataError: the size is not two positive whole numbers, or channels is neither 1 nor 3.
    """

    size: tuple[int, int]
    channels: int

    def __post_init__(self) -> None:
        """Refuse a form no image can take; a JSON list is taken as a size."""
        if not isinstance(self.size, Sequence) or len(self.size) != 2:
            raise DataError(f"image_size must be [height, width], got {self.size!r}")
        if not all(type(side) is int and side > 0 for side in self.size):
            raise DataError(f"image_size must be two positive integers, got {self.size!r}")
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise DataError(f"channels must be 1 or 3, got {self.channels!r}")
        object.__setattr__(self, "size", tuple(self.size))

    def fit(self, images: Tensor) -> Tensor:
        """Convert and resize ``(N, c, h, w)`` float32 in [0, 1], c 1 or 3, to ``(N, C, H, W)``.

        The resize is bilinear with antialiasing and does not keep the aspect ratio.
        """
        if images.shape[1] == 3 and self.channels == 1:
            weights = torch.tensor(_LUMA).view(1, 3, 1, 1)
            images = (images * weights).sum(dim=1, keepdim=True)
        elif images.shape[1] == 1 and self.channels == 3:
            images = images.repeat(1, 3, 1, 1)
        if tuple(images.shape[2:]) != self.size and len(images):
            images = interpolate(images, size=self.size, mode="bilinear", antialias=True)
        # Rounding can leave 1 + 1e-7 behind.
        return images.clamp(0, 1).contiguous()

    def fit_set(self, images: ImageSet) -> ImageSet:
        """Return ``images`` in this form, all else unchanged."""
        return replace(images, images=self.fit(images.images))
