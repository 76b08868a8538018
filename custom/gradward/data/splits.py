"""Splits that never put one patient on two sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from gradward.data.images import DataError


def split_by_patient(
    patients: Sequence[str],
    shares: Sequence[float],
    *,
    seed: int = 0,
    strata: Sequence[int] | None = None,
) -> list[list[int]]:
    """Divide images among parts, whole patients to one part.

    Patients are taken in the order of a hash of seed and id, so that the same data gives the same
    parts on every machine and under every library version; each goes to the part that lacks most
    in proportion, of those it fits into, which leaves patients with few images to small parts.

    Args:
        patients: one id an image.
        shares: the positive fraction of the images each part should get; scaled to sum 1.
        seed: another seed, another split.
        strata: one class an image; the shares are then held within each class (of a patient's
            first image).

    Returns:
        For each part the ascending indices of its images. A part's size differs from its share by
        at most about one patient's images.

    Raises:
        DataError: no share, or one that is not positive.
    """
    if not shares or not all(share > 0 for share in shares):
        raise DataError(f"the shares of a split must be positive, got {list(shares)}")
    images_of: dict[str, list[int]] = {}
    for index, patient in enumerate(patients):
        images_of.setdefault(patient, []).append(index)
    stratum_of = {p: strata[own[0]] if strata else 0 for p, own in images_of.items()}
    parts: list[list[int]] = [[] for _ in shares]
    lacking = [0.0 for _ in shares]
    for stratum in sorted(set(stratum_of.values())):
        members = [p for p, s in stratum_of.items() if s == stratum]
        members.sort(key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
        count = sum(len(images_of[patient]) for patient in members)
        wanted = [share / sum(shares) * count for share in shares]
        # What one class left over or took too much, the next makes up for.
        lacking = [lack + want for lack, want in zip(lacking, wanted, strict=True)]
        for patient in members:
            size = len(images_of[patient])
            room = [p for p, lack in enumerate(lacking) if lack >= size]
            if room:
                part = max(room, key=lambda p: lacking[p] / wanted[p])
            else:
                part = lacking.index(max(lacking))
            parts[part] += images_of[patient]
            lacking[part] -= size
    return [sorted(part) for part in parts]


def group_images(*keys: Iterable[str]) -> list[str]:
    """Name the group of each image, where images that share any key belong together.

    Args:
        keys: one iterable for each kind of key (patient ids, pixel digests), one key an image;
            "" is no key.

    Returns:
        For each image the first key of the first kind found in its group, or ``image-<index>``
        where the group has none of that kind.
    """
    columns = [list(column) for column in keys]
    total = len(columns[0])
    node_of: dict[tuple[int, str], int] = {}
    edges: list[tuple[int, int]] = []
    for kind, column in enumerate(columns):
        for image, key in enumerate(column):
            if key:
                edges.append((image, node_of.setdefault((kind, key), total + len(node_of))))
    size = total + len(node_of)
    rows, cols = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, cols)), shape=(size, size))
    component = connected_components(graph, directed=False)[1][:total].tolist()
    name_of: dict[int, str] = {}
    for image, key in enumerate(columns[0]):
        if key:
            name_of.setdefault(component[image], key)
    for image in range(total):
        name_of.setdefault(component[image], f"image-{image}")
    return [name_of[c] for c in component]
