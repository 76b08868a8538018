"""The checked entries of a data list."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradward.data.images import DataError


@dataclass(frozen=True)
class Entry:
    """One image of a data list.

    Attributes:
        key: the list it stands in.
        number: its place there, counted from 0; with the key all that a message may say of it.
        path: the file.
        label: class index.
        patient: id, or a digest of the file's place where none is given. It stays at home.
        slice: which slice or frame, None for the middle one.
        volume: which volume of a series, None for the first.
    """

    key: str
    number: int
    path: Path
    label: int
    patient: str
    slice: int | None
    volume: int | None

    @property
    def name(self) -> str:
        """Where the image is found. It stays at home."""
        places = (("volume", self.volume), ("slice", self.slice))
        return "".join([str(self.path), *(f"[{w} {i}]" for w, i in places if i is not None)])


def entries_of(
    items: Sequence[Any], key: str, root: Path, patients: Mapping[str, str], where: str
) -> list[Entry]:
    """Check the items of one key of a data list.

    Args:
        items: ``{"image": path, "label": int}``, optionally with patient, slice and volume.
        key: the key they stand under.
        root: the folder their paths start from.
        patients: path to patient id, for items that give none.
        where: the data set, for messages.

    Raises:
        DataError: an item that is not of this form, by its number.
    """
    entries = []
    for number, item in enumerate(items):
        what = f"entry {number} of '{key}' in {where}"
        if not isinstance(item, dict) or not isinstance(item.get("image"), str):
            raise DataError(f"{what} must be an object with the text 'image' and the 'label'")
        label = _count(item, "label", what)
        if label is None:
            raise DataError(f"{what} has no 'label'; give it a class number, counted from 0")
        entries.append(
            Entry(
                key,
                number,
                root / item["image"],
                label,
                patient_of(item, patients),
                _count(item, "slice", what),
                _count(item, "volume", what),
            )
        )
    return entries


def image_of(item: Any) -> str:
    """Return the path in an item, which MONAI also writes without an object, or ""."""
    path = item.get("image") if isinstance(item, dict) else item
    return path if isinstance(path, str) else ""


def patient_of(item: Any, patients: Mapping[str, str]) -> str:
    """Return an item's patient: its own id, the csv's, or a digest of its path."""
    own = item.get("patient") if isinstance(item, dict) else None
    if own is not None and str(own).strip():
        return str(own).strip()
    path = image_of(item)
    # The same file listed twice is the same patient even where nobody says whose it is.
    return patients.get(path) or "file-" + hashlib.sha256(path.encode()).hexdigest()[:16]


def read_patients(path: Path, where: str) -> dict[str, str]:
    """Return file (as the data list writes it) to patient id from a csv.

    Raises:
        DataError: it lacks the columns file and patient_id.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["file"]: row["patient_id"].strip() for row in csv.DictReader(file)}
    except Exception:
        raise DataError(
            f"the csv that 'patients' of {where} names must have the columns file and patient_id"
        ) from None


def _count(item: Mapping[str, Any], key: str, what: str) -> int | None:
    value = item.get(key)
    if value is not None and (type(value) is not int or value < 0):
        raise DataError(f"'{key}' of {what} must be a whole number, 0 or more")
    return value
