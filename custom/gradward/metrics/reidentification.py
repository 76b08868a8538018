"""Whose picture is it: the rank of the true image among a gallery of others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from gradward.data.images import DataError, ImageSet
from gradward.metrics.similarity import check_images

MINIMUM_GALLERY = 100
_CHUNK = 256


def gallery_ranks(reconstructions: Tensor, truth_index: Tensor, gallery: Tensor) -> Tensor:
    """Rank of the true image when the gallery is ordered by MSE to the reconstruction.

    A tie is shared: the rank is 1 + (pictures that are nearer) + (other pictures as near) / 2. So
    a tie for the first place is 1.5 and never counts as re-identified.

    Args:
        reconstructions: ``(n, C, H, W)`` in [0, 1].
        truth_index: ``(n,)`` int64, position of each one's true image in the gallery.
        gallery: ``(G, C, H, W)`` in [0, 1], on the same device; no picture twice, or the true
            image can tie with its own copy (see :func:`build_gallery`).

    Returns:
        ``(n,)`` float64 in [1, G]; 1 means that the true image alone is the nearest.

    Raises:
        ValueError: shapes do not fit, values leave [0, 1] or are not finite, or an index does not
            point into the gallery.
    """
    check_images(reconstructions)
    check_images(gallery)
    if (
        reconstructions.shape[1:] != gallery.shape[1:]
        or truth_index.shape != reconstructions.shape[:1]
    ):
        raise ValueError(
            f"{tuple(reconstructions.shape)} reconstructions and {tuple(truth_index.shape)} "
            f"indices do not fit a gallery of {tuple(gallery.shape)}"
        )
    if len(truth_index) and not (truth_index.min() >= 0 and truth_index.max() < len(gallery)):
        raise ValueError(f"truth_index must lie in [0, {len(gallery)})")
    ranks = []
    for picture, true in zip(reconstructions, truth_index.tolist(), strict=True):
        # Differences, not the expanded square, whose rounding would make and break ties.
        distances = torch.cat(
            [
                (part - picture).square().flatten(1).mean(1, dtype=torch.float64)
                for part in gallery.split(_CHUNK)
            ]
        )
        nearer = (distances < distances[true]).sum()
        as_near = (distances == distances[true]).sum() - 1
        ranks.append(1 + nearer.double() + as_near.double() / 2)
    return torch.stack(ranks) if ranks else torch.zeros(0, dtype=torch.float64)


def build_gallery(
    site_images: ImageSet,
    decoys: ImageSet,
    true_indices: Sequence[int] | Tensor,
    minimum: int = MINIMUM_GALLERY,
) -> tuple[Tensor, Tensor]:
    """Build the gallery in which true images are sought: the site's own, filled up with decoys.

    A site with one image would otherwise be recognised for free. Decoys of the truths' classes come
    first, in the order of ``decoys``; a picture that is there already, to the bit, is left out.

    Args:
        site_images: all images of the site.
        decoys: declared public images of the same shape.
        true_indices: ``(n,)`` positions of the true images in ``site_images``.
        minimum: pictures that the gallery must hold; chance is one in its size.

    Returns:
        The gallery ``(G, C, H, W)`` with ``G >= minimum``, and each true image's position in it,
        ``(n,)`` int64.

    Raises:
        DataError: shapes differ, or the decoys do not suffice.
    """
    if site_images.images.shape[1:] != decoys.images.shape[1:]:
        raise DataError(
            f"decoys of shape {tuple(decoys.images.shape[1:])} do not fit site images of shape "
            f"{tuple(site_images.images.shape[1:])}"
        )
    places: dict[bytes, int] = {}
    pictures: list[Tensor] = []
    site_places: list[int] = []
    for picture in site_images.images:
        key = _fingerprint(picture)
        if key not in places:
            places[key] = len(pictures)
            pictures.append(picture)
        site_places.append(places[key])
    indices = torch.as_tensor(true_indices, dtype=torch.int64)
    alike = torch.isin(decoys.labels, site_images.labels[indices])
    for index in [*alike.nonzero().flatten().tolist(), *(~alike).nonzero().flatten().tolist()]:
        if len(pictures) >= minimum:
            break
        picture = decoys.images[index].to(site_images.images.device)
        key = _fingerprint(picture)
        if key not in places:
            places[key] = len(pictures)
            pictures.append(picture)
    if len(pictures) < minimum:
        raise DataError(
            f"the gallery needs at least {minimum} different pictures, but {len(site_images)} site "
            f"images and {len(decoys)} decoys give {len(pictures)}; declare more public decoys"
        )
    return torch.stack(pictures), torch.tensor(site_places, dtype=torch.int64)[indices]


def _fingerprint(picture: Tensor) -> bytes:
    return hashlib.sha256(picture.detach().cpu().contiguous().numpy().tobytes()).digest()
