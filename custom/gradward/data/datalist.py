"""MONAI data lists: images as files, PNG, JPEG, DICOM or NIfTI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradward.data.entries import Entry, entries_of, image_of, patient_of, read_patients
from gradward.data.form import ImageForm
from gradward.data.images import DataError, ImageSet
from gradward.data.parts import PARTS, Checksum, PublicParts, divide
from gradward.data.readers import read_image
from gradward.data.spec import check_keys, existing_path, setting
from gradward.data.splits import split_by_patient

_LIST_KEYS = ("path", "root", "patients")
_KEYS = ("format", "name", *_LIST_KEYS, "training", "validation", "testing", "seed", "public")
_PUBLIC_KEYS = (*_LIST_KEYS, "keys", "prior", "licence")


class DatalistSource:
    """A site's data list.

    Args:
        spec: ``format``, ``path`` (the list) and optionally ``root`` (the images' folder, the
            list's own by default), ``patients`` (csv with the columns file and patient_id),
            ``training``, ``validation``, ``testing`` (keys of the list; ``{site}`` stands for the
            site's name; validation and testing may name one key, which is then halved by patient),
            ``seed``, ``public``.
        name: the data set's name, for messages.

    Raises:
        DataError: settings or files that cannot be used.
    """

    def __init__(self, spec: Mapping[str, Any], name: str) -> None:
        self._where = where = f"data set '{name}'"
        check_keys(spec, _KEYS, where)
        self._spec = spec
        self._seed = setting(spec, "seed", int, where, 0)

    def split(self, split: str, site: str, form: ImageForm) -> ImageSet:
        """Read one split.

        Raises:
            DataError: the list lacks it, or an image of it cannot be used.
        """
        lists = _Lists(self._spec, self._where)
        key = self._key(split, site, lists)
        entries = lists.entries(key)
        held_out = ("validation", "testing")
        if split in held_out and len({self._key(s, site, lists) for s in held_out}) == 1:
            groups, labels = [e.patient for e in entries], [e.label for e in entries]
            halves = split_by_patient(groups, (1, 1), seed=self._seed, strata=labels)
            entries = [entries[i] for i in halves[held_out.index(split)]]
            if not entries:
                raise DataError(f"{self._where} has too few held-out patients for {split}")
        return _read(entries, form, f"in {self._where}", lists.has_patients)

    def public(self, form: ImageForm) -> PublicParts:
        """Read the declared public images, less every patient that another key of the list holds.

        Raises:
            DataError: the data set declares none, or an image of it cannot be used.
        """
        section = self._spec.get("public")
        if not section:
            raise DataError(f"{self._where} declares no public images; add the setting 'public'")
        where = f"'public' of {self._where}"
        check_keys(section, _PUBLIC_KEYS, where)
        keys = [str(key) for key in setting(section, "keys", list, where, None)]
        inherited = (
            {} if "path" in section else {k: self._spec[k] for k in _LIST_KEYS if k in self._spec}
        )
        lists = _Lists({**inherited, **section}, where)
        private = lists.patients_outside(keys)
        pool = [e for key in keys for e in lists.entries(key) if e.patient not in private]
        divided = divide([e.patient for e in pool], [e.label for e in pool])
        checksum, parts = Checksum(), {}
        for part in PARTS:
            entries = [pool[i] for i in divided[part]]
            parts[part] = _read(entries, form, f"in {where}", lists.has_patients)
            for entry in entries:
                checksum.add(part, entry.path.read_bytes(), entry.label)
        prior = None
        if "prior" in section:
            path = lists.root / setting(section, "prior", str, where, None)
            try:
                prior = form.fit(read_image(path)[None])[0]
            except DataError as error:
                raise DataError(f"the picture that 'prior' of {where} names {error}") from None
            checksum.add("prior picture", path.read_bytes())
        licence = setting(section, "licence", str, where, "not stated")
        return PublicParts(parts, str(checksum), licence, prior)

    def _key(self, split: str, site: str, lists: _Lists) -> str:
        default = split
        if split == "training" and site in lists.keys:
            default = "{site}"
        return setting(self._spec, split, str, self._where, default).replace("{site}", site)


class _Lists:
    """One data list file with what belongs to it."""

    def __init__(self, spec: Mapping[str, Any], where: str) -> None:
        self._where = where
        path = existing_path(spec, "path", where)
        self.root = (
            existing_path(spec, "root", where, folder=True) if "root" in spec else path.parent
        )
        try:
            lists = json.loads(path.read_text(encoding="utf-8"))
            # A MONAI data list also has a name, a description and the like.
            self._lists = {key: value for key, value in lists.items() if isinstance(value, list)}
        except (OSError, ValueError, AttributeError):
            raise DataError(
                f"the data list of {where} is not a JSON object of lists; correct it or 'path'"
            ) from None
        self._patients: dict[str, str] = {}
        if "patients" in spec:
            self._patients = read_patients(existing_path(spec, "patients", where), where)
        items = [item for items in self._lists.values() for item in items]
        if "patients" in spec and not any(image_of(item) in self._patients for item in items):
            raise DataError(
                f"the csv that 'patients' of {where} names knows no image of the data list; its "
                "column file must hold the paths as the list writes them"
            )
        self.has_patients = "patients" in spec or any(
            isinstance(item, dict) and "patient" in item for item in items
        )

    @property
    def keys(self) -> Sequence[str]:
        return list(self._lists)

    def entries(self, key: str) -> list[Entry]:
        """Return the checked entries of one key."""
        if not self._lists.get(key):
            raise DataError(
                f"the data list of {self._where} has nothing under '{key}'; its keys are "
                f"{sorted(self.keys)}"
            )
        return entries_of(self._lists[key], key, self.root, self._patients, self._where)

    def patients_outside(self, keys: Sequence[str]) -> set[str]:
        """Return the patients of all other keys, whose items need no label."""
        others = [item for key in self.keys if key not in keys for item in self._lists[key]]
        return {patient_of(item, self._patients) for item in others if image_of(item)}


def _read(entries: Sequence[Entry], form: ImageForm, where: str, has_patients: bool) -> ImageSet:
    """Read and fit images one by one: they may differ in size."""
    images = torch.empty(len(entries), form.channels, *form.size)
    for row, entry in enumerate(entries):
        try:
            image = read_image(entry.path, index=entry.slice, volume=entry.volume)
        except DataError as error:
            raise DataError(
                f"entry {entry.number} of '{entry.key}' {where} {error}; check that entry "
                "(counted from 0) in the site's data list"
            ) from None
        images[row] = form.fit(image[None])[0]
    return ImageSet(
        images,
        torch.tensor([entry.label for entry in entries], dtype=torch.int64),
        tuple(entry.patient for entry in entries) if has_patients else None,
        tuple(entry.name for entry in entries),
    )
