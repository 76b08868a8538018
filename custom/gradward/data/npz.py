"""MedMNIST files: one npz with a train, a val and a test split, divided among sites by patient."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradward.data.form import ImageForm
from gradward.data.images import DataError, ImageSet
from gradward.data.parts import PARTS, Checksum, PublicParts, divide
from gradward.data.spec import check_keys, existing_path, setting
from gradward.data.splits import group_images, split_by_patient

_KEYS = ("format", "name", "path", "patients", "sites", "shares", "seed", "public")
_PUBLIC_KEYS = ("split", "count", "licence")
_SPLITS = {"training": "train", "validation": "val", "testing": "test"}


class NpzSource:
    """A MedMNIST file whose train split is shared out among named sites.

    Images of one patient, and images that are equal to the pixel, stay together. Public images are
    whole patients taken out of one split and given to no site. Whoever is in train is dropped from
    val and test, and whoever is in test from val.

    Args:
        spec: ``format``, ``path``, ``sites`` and optionally ``patients`` (csv with the columns
            split, index and patient_guess or patient_id), ``shares``, ``seed``, ``public``.
        name: the data set's name, for messages.

    Raises:
        DataError: settings or files that cannot be used.
    """

    def __init__(self, spec: Mapping[str, Any], name: str) -> None:
        self._where = where = f"data set '{name}'"
        check_keys(spec, _KEYS, where)
        self._sites: list[str] = setting(spec, "sites", list, where, None)
        self._shares = setting(spec, "shares", list, where, [1.0] * len(self._sites))
        fractions = all(isinstance(share, int | float) for share in self._shares)
        if not self._sites or len(self._shares) != len(self._sites) or not fractions:
            raise DataError(f"'shares' of {where} must have one fraction for each of 'sites'")
        self._seed = setting(spec, "seed", int, where, 0)
        self._public = spec.get("public")
        self._path = existing_path(spec, "path", where)
        self._arrays = _read_arrays(self._path, where)
        self._has_patients = "patients" in spec
        ids: dict[tuple[str, int], str] = {}
        if self._has_patients:
            ids = _read_patients(existing_path(spec, "patients", where), where)
        places = [(s, i) for s, (_, y) in self._arrays.items() for i in range(len(y))]
        if self._has_patients and not any(place in ids for place in places):
            raise DataError(f"the csv that 'patients' of {where} names knows no image of the file")
        digests = [hashlib.sha256(self._arrays[s][0][i].tobytes()).hexdigest() for s, i in places]
        named = group_images([ids.get(place, "") for place in places], digests)
        self._groups: dict[str, list[str]] = {split: [] for split in self._arrays}
        for (split, _), group in zip(places, named, strict=True):
            self._groups[split].append(group)

    def split(self, split: str, site: str, form: ImageForm) -> ImageSet:
        """Return the site's share of the train split, or the val or test split all sites share.

        Raises:
            DataError: the site is not in ``sites``, or nothing is left for it.
        """
        source = _SPLITS[split]
        reserved_in, reserved = self._reserved() if self._public else ("", [])
        taken = {self._groups[reserved_in][i] for i in reserved}
        if source != "train":
            taken |= set(self._groups["train"])
        if source == "val":
            taken |= set(self._groups["test"])
        kept = [i for i, group in enumerate(self._groups[source]) if group not in taken]
        if source == "train":
            if site not in self._sites:
                raise DataError(
                    f"{self._where} has no share for '{site}'; add it to the setting 'sites'"
                )
            groups = [self._groups[source][i] for i in kept]
            shares = split_by_patient(groups, self._shares, seed=self._seed)
            kept = [kept[i] for i in shares[self._sites.index(site)]]
        if not kept:
            raise DataError(
                f"{self._where} has no {split} images left for this site; give it a larger share"
            )
        return form.fit_set(self._select(source, kept))

    def public(self, form: ImageForm) -> PublicParts:
        """Return the public images, divided by patient.

        Raises:
            DataError: the data set declares none.
        """
        if not self._public:
            raise DataError(f"{self._where} declares no public images; add the setting 'public'")
        split, indices = self._reserved()
        images, labels = self._arrays[split]
        groups = [self._groups[split][i] for i in indices]
        checksum, parts = Checksum(), {}
        divided = divide(groups, labels[indices].tolist())
        for part in PARTS:
            own = [indices[i] for i in divided[part]]
            for i in own:
                checksum.add(part, images[i].tobytes(), int(labels[i]))
            parts[part] = form.fit_set(self._select(split, own))
        licence = setting(self._public, "licence", str, f"'public' of {self._where}", "not stated")
        return PublicParts(parts, str(checksum), licence)

    def _reserved(self) -> tuple[str, list[int]]:
        """Return the split public images come from and their indices in it."""
        where = f"'public' of {self._where}"
        check_keys(self._public or {}, _PUBLIC_KEYS, where)
        split = setting(self._public or {}, "split", str, where, None)
        count = setting(self._public or {}, "count", int, where, None)
        if split not in ("train", "val"):
            raise DataError(f"'split' of {where} must be 'train' or 'val'")
        images, labels = self._arrays[split]
        if not 0 < count < len(images):
            raise DataError(f"'count' of {where} must be 1 to {len(images) - 1}, got {count}")
        return split, split_by_patient(
            self._groups[split],
            (count, len(images) - count),
            seed=self._seed,
            strata=labels.tolist(),
        )[0]

    def _select(self, split: str, indices: Sequence[int]) -> ImageSet:
        images, labels = self._arrays[split]
        pixels = torch.from_numpy(images[list(indices)]).float() / 255
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        patients = tuple(self._groups[split][i] for i in indices) if self._has_patients else None
        names = tuple(f"{self._path}[{split}_images][{i}]" for i in indices)
        return ImageSet(pixels, torch.from_numpy(labels[list(indices)]), patients, names)


def _read_arrays(path: Path, where: str) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Return split name to images ``(N, H, W[, 3])`` and labels ``(N,)``."""
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            raw = {s: (file[f"{s}_images"], file[f"{s}_labels"]) for s in _SPLITS.values()}
    except Exception:
        # A damaged zip raises many types, some with the file's name in their text.
        raise DataError(
            f"the file of {where} cannot be read as an npz with train, val and test _images and "
            "_labels; get it again or correct 'path'"
        ) from None
    for split, (images, labels) in raw.items():
        if images.dtype != np.uint8 or not (images.ndim == 3 or images.shape[3:] == (3,)):
            raise DataError(f"{split}_images of {where} must be uint8 N x H x W or N x H x W x 3")
        if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
            raise DataError(f"{split}_labels of {where} must be one integer for each image")
        if labels.size and labels.min() < 0:
            raise DataError(f"{split}_labels of {where} must not be negative")
        arrays[split] = (images, labels.reshape(-1).astype(np.int64))
    return arrays


def _read_patients(path: Path, where: str) -> dict[tuple[str, int], str]:
    """Return (split, index) to patient id, blank ids left out."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
            column = "patient_guess" if rows and "patient_guess" in rows[0] else "patient_id"
            return {(r["split"], int(r["index"])): r[column] for r in rows if r[column].strip()}
    except Exception:
        raise DataError(
            f"the csv that 'patients' of {where} names must have the columns split, index and "
            "patient_guess or patient_id"
        ) from None
