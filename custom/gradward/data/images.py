"""The one form in which images travel through the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class DataError(ValueError):
    """Data that cannot be used.

    The message names the data set or the position of the entry and the remedy, never a file name,
    a patient or a pixel: NVFlare streams a site's error log to the server.
    """


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one split.

    Attributes:
        images: ``(N, C, H, W)`` float32 in [0, 1].
        labels: ``(N,)`` int64 class indices.
        patients: one id an image, or None where the source gives none. It stays at home.
        names: where each image is found, for the site's own eyes: a file's path and the place in
            it; None where nobody asks. It stays at home, like ``patients``.

    Raises:
        DataError: shapes, types or the range do not fit.
    """

    images: Tensor
    labels: Tensor
    patients: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what is not a labelled image set."""
        if self.images.ndim != 4 or self.images.dtype != torch.float32:
            raise DataError(
                f"images must be float32 (N, C, H, W), got {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if self.labels.shape != (len(self.images),) or self.labels.dtype != torch.int64:
            raise DataError(
                f"labels must be int64 ({len(self.images)},), got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )
        if self.patients is not None and len(self.patients) != len(self.images):
            raise DataError(
                f"{len(self.patients)} patient ids were given for {len(self.images)} images"
            )
        if self.names is not None and len(self.names) != len(self.images):
            raise DataError(f"{len(self.names)} names were given for {len(self.images)} images")
        if len(self.images) and not (self.images.min() >= 0 and self.images.max() <= 1):
            raise DataError("images must be finite and lie in [0, 1]")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """Return the images at ``indices``, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        places = index.tolist()

        def chosen(texts: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if texts is None else tuple(texts[i] for i in places)

        return ImageSet(
            self.images[index], self.labels[index], chosen(self.patients), chosen(self.names)
        )


UNLABELLED = -1


def unlabelled(images: Tensor) -> ImageSet:
    """Return images ``(N, C, H, W)`` whose labels are not known."""
    return ImageSet(images, torch.full((len(images),), UNLABELLED))


def require_same_form(site_images: ImageSet, public: ImageSet) -> None:
    """Make sure that a site's images and public ones have the same channels, height and width.

    Raises:
        DataError: they have not.
    """
    if public.images.shape[1:] != site_images.images.shape[1:]:
        raise DataError(
            f"public images of shape {tuple(public.images.shape[1:])} do not fit site images of "
            f"shape {tuple(site_images.images.shape[1:])}"
        )
