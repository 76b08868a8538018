"""Whose view is it: the strongest test of identity that we know, among candidates of one class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from gradward.data.images import DataError, ImageSet
from gradward.metrics.similarity import check_images


def likelihood_linkage(
    released: Tensor,
    gallery: Tensor,
    gate: Tensor,
    truth: Tensor,
    candidates: Tensor | None = None,
) -> Tensor:
    """Probability that the likeliest candidate is the true one, for each released view.

    The attacker holds the view ``w' = a w + sqrt(1 - a^2) eps``, the perturber, and the images of
    all candidates, and names the one with the least ``sum (w' - a w)^2 / (1 - a^2)``: no rule does
    better among equally probable candidates. Of ``k`` candidates that are equally likely one is
    named at random, so a tie that the true one shares gives ``1/k`` and gates of 0 give chance.

    Args:
        released: ``(V, r)`` views.
        gallery: ``(V, G, r)`` whitened latents of each view's candidates, clipped as the perturber
            clips them; or ``(M, r)`` of all images, with ``candidates``.
        gate: ``(r,)`` in [0, 1).
        truth: ``(V,)`` int64, position in [0, G) of the true one among the candidates.
        candidates: ``(V, G)`` int64, rows of an ``(M, r)`` gallery, as :func:`same_class_gallery`
            gives them.

    Returns:
        ``(V,)`` float64 in [0, 1]; the linkage is its mean, chance is ``1/G``.

    Raises:
        ValueError: shapes, indices or gates do not fit, or values are not finite.
    """
    if gate.ndim != 1 or (gate.numel() and not (gate.min() >= 0 and gate.max() < 1)):
        raise ValueError(f"gates must be (r,) and lie in [0, 1), got {tuple(gate.shape)}")
    if not (torch.isfinite(released).all() and torch.isfinite(gallery).all()):
        raise ValueError("views and latents must be finite")
    rows = _rows(gallery, candidates)
    if released.shape != (len(rows), len(gate)) or gallery.shape[-1] != len(gate):
        raise ValueError(
            f"{tuple(released.shape)} views do not fit a gallery of {tuple(gallery.shape)} "
            f"and {len(gate)} gates"
        )
    # What has no gate has no trace of the image; left in, its rounding would break ties.
    kept = gate > 0
    a = gate[kept].double()
    precision = 1 / (1 - a.square())
    distances = [
        ((view[kept].double() - a * latents[:, kept].double()).square() * precision).sum(1)
        for view, latents in zip(released, rows, strict=True)
    ]
    return _success(distances, truth)


def linkage_by_distance(
    reconstructions: Tensor, images: Tensor, candidates: Tensor, truth: Tensor
) -> Tensor:
    """Probability that the candidate nearest to each reconstruction is the true one.

    Where there is a released or reconstructed picture and no latent. Pictures are standardised
    first (mean 0, norm 1), so that brightness and contrast, which defences shift, do not hide an
    image. Ties as in :func:`likelihood_linkage`; a picture of one colour ties with all.

    Args:
        reconstructions: ``(V, C, H, W)`` in [0, 1].
        images: ``(M, C, H, W)`` in [0, 1].
        candidates: ``(V, G)`` int64, rows of ``images``, as :func:`same_class_gallery` gives them.
        truth: ``(V,)`` int64, position in [0, G) of the true one among the candidates.

    Returns:
        ``(V,)`` float64 in [0, 1]; the linkage is its mean, chance is ``1/G``.

    Raises:
        ValueError: shapes or indices do not fit, or values leave [0, 1].
    """
    check_images(reconstructions)
    check_images(images)
    if reconstructions.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"reconstructions {tuple(reconstructions.shape)} do not fit images "
            f"{tuple(images.shape)}"
        )
    rows = _rows(_standardised(images), candidates)
    pictures = _standardised(reconstructions)
    if len(rows) != len(pictures):
        raise ValueError(f"{len(pictures)} reconstructions for {len(rows)} galleries")
    # Between standardised pictures the squared distance is 2 - 2 times the correlation.
    distances = [-(others * picture).sum(1) for picture, others in zip(pictures, rows, strict=True)]
    return _success(distances, truth)


def same_class_gallery(
    images: ImageSet, victims: Sequence[int] | Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw each victim's candidates: itself, at a random place, among others of its class.

    No other candidate is of the victim's patient, or the same picture to the bit. They come from as
    many patients as there are; where the source names none, each image counts as its own.

    Args:
        images: where victims and candidates come from.
        victims: ``(V,)`` positions in ``images``.
        size: ``G``, candidates of each victim, itself included, at least 2.
        generator: CPU generator.

    Returns:
        Positions of the candidates in ``images``, ``(V, G)``, and the victim's place among them,
        ``(V,)``, both int64.

    Raises:
        ValueError: ``size`` is less than 2.
        DataError: a victim's class has too few images of other patients.
    """
    if size < 2:
        raise ValueError(f"a gallery needs at least 2 candidates, got {size}")
    patients = images.patients or tuple(str(index) for index in range(len(images)))
    positions = torch.as_tensor(victims, dtype=torch.int64).tolist()
    galleries, places = [], []
    for victim in positions:
        pool = [
            index
            for index in (images.labels == images.labels[victim]).nonzero().flatten().tolist()
            if patients[index] != patients[victim]
            and not torch.equal(images.images[index], images.images[victim])
        ]
        if len(pool) < size - 1:
            raise DataError(
                f"a gallery of {size} needs {size - 1} other images of the victim's class from "
                f"other patients, but there are {len(pool)}; take a smaller gallery or more images"
            )
        shuffled = [pool[i] for i in torch.randperm(len(pool), generator=generator).tolist()]
        # Each patient's first image before anyone's second.
        seen: Counter[str] = Counter()
        turn = {}
        for index in shuffled:
            turn[index] = seen[patients[index]]
            seen[patients[index]] += 1
        others = sorted(shuffled, key=turn.__getitem__)[: size - 1]
        place = int(torch.randint(size, (1,), generator=generator))
        galleries.append([*others[:place], victim, *others[place:]])
        places.append(place)
    return (
        torch.tensor(galleries, dtype=torch.int64).reshape(-1, size),
        torch.tensor(places, dtype=torch.int64),
    )


def _rows(gallery: Tensor, candidates: Tensor | None) -> list[Tensor]:
    """Return each victim's candidates ``(G, r)``."""
    if candidates is None:
        if gallery.ndim != 3:
            raise ValueError(f"without candidates a gallery is (V, G, r), got {gallery.ndim} axes")
        return list(gallery)
    if gallery.ndim != 2 or candidates.ndim != 2:
        raise ValueError(
            f"candidates {tuple(candidates.shape)} must be (V, G) rows of a gallery (M, r), got "
            f"{tuple(gallery.shape)}"
        )
    if candidates.numel() and not (candidates.min() >= 0 and candidates.max() < len(gallery)):
        raise ValueError(f"candidates must lie in [0, {len(gallery)})")
    return [gallery[row] for row in candidates]


def _success(distances: list[Tensor], truth: Tensor) -> Tensor:
    if truth.shape != (len(distances),):
        raise ValueError(f"truth must be ({len(distances)},), got {tuple(truth.shape)}")
    success = torch.zeros(len(distances), dtype=torch.float64)
    for victim, (row, true) in enumerate(zip(distances, truth.tolist(), strict=True)):
        if not 0 <= true < len(row):
            raise ValueError(f"truth must lie in [0, {len(row)})")
        nearest = row == row.min()
        success[victim] = float(nearest[true]) / int(nearest.sum())
    return success


def _standardised(images: Tensor) -> Tensor:
    """Return ``(N, C * H * W)`` float64 with mean 0 and norm 1, or all 0 for a single colour."""
    rows = images.flatten(1).double()
    rows = rows - rows.mean(1, keepdim=True)
    # A single colour leaves what the mean was rounded by, which is no picture.
    rows = torch.where(rows.abs().amax(1, keepdim=True) > 1e-6, rows, 0.0)
    return torch.nn.functional.normalize(rows, dim=1)
