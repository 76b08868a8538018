"""Data sets by name: a site's own settings first, then the built-in ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradward.data.images import DataError

_THREE_SITES = ["site-1", "site-2", "site-3"]
_MEDMNIST = "MedMNIST v2; CC BY 4.0"
# "file" settings are relative to `data_root`.
_FILES = ("path", "patients")
_BUILT_IN: dict[str, dict[str, Any]] = {
    "histology": {"format": "embedded"},
    "chest-xray": {
        "format": "datalist",
        "path": "cxr224/splits.json",
        "patients": "cxr224/labels.csv",
        # "validation" of this list is public, so one held-out key serves both, halved by patient.
        "validation": "testing",
        "testing": "testing",
        "public": {
            "keys": ["validation", "unused"],
            "prior": "prior_mean.png",
            "licence": "Hannover COVID-19 Image Repository, CC BY 3.0; Kermany et al., CC BY 4.0",
        },
    },
    "pneumonia": {
        "format": "npz",
        "path": "pneumoniamnist/pneumoniamnist_open.npz",
        "patients": "pneumoniamnist/patient_match.csv",
        "sites": _THREE_SITES,
        # Patients of train, not of val: most of val's patients are in train as well, and what is
        # left of val has to serve as validation.
        "public": {"split": "train", "count": 600, "licence": f"PneumoniaMNIST, {_MEDMNIST}"},
    },
    "breast": {
        "format": "npz",
        "path": "breastmnist/breastmnist.npz",
        "sites": _THREE_SITES,
        "public": {"split": "train", "count": 180, "licence": f"BreastMNIST, {_MEDMNIST}"},
    },
    "mnist": {
        "format": "npz",
        "path": "mnist_t10k/mnist_t10k_open.npz",
        "sites": _THREE_SITES,
        "public": {"split": "val", "count": 500, "licence": "MNIST; CC BY-SA 3.0"},
    },
    "fashion-mnist": {
        "format": "npz",
        "path": "fashion_mnist_sprite/fashion_sprite_open.npz",
        "sites": _THREE_SITES,
        "public": {"split": "train", "count": 180, "licence": "Fashion-MNIST; MIT, Zalando SE"},
    },
}


def dataset_names() -> tuple[str, ...]:
    """Return the names of the built-in data sets."""
    return tuple(_BUILT_IN)


def data_root() -> Path | None:
    """Return the folder of the built-in data sets' files, or None.

    It is what the environment variable GRADWARD_DATA says, else ``../shared/data`` seen from the
    current directory where that is a folder.

    Raises:
        DataError: GRADWARD_DATA names no folder.
    """
    given = os.environ.get("GRADWARD_DATA")
    root = Path(given).expanduser() if given else Path("../shared/data")
    if root.is_dir():
        return root.resolve()
    if given:
        raise DataError("the folder that GRADWARD_DATA names does not exist; correct GRADWARD_DATA")
    return None


def dataset_spec(
    name: str, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the spec that `load_split` and `load_public_set` take.

    Args:
        name: a data set's name.
        overrides: name to spec, a site's own settings (``data`` of its gradward.json); they
            replace a built-in data set of the same name as a whole.

    Raises:
        DataError: unknown name, or the files of a built-in data set are nowhere.
    """
    if overrides and name in overrides:
        if not isinstance(overrides[name], Mapping):
            raise DataError(f"'data.{name}' of the site's gradward.json must be a JSON object")
        return {"name": name, **overrides[name]}
    if name not in _BUILT_IN:
        known = sorted({*_BUILT_IN, *(overrides or {})})
        raise DataError(
            f"there is no data set '{name}'; known are {', '.join(known)}. Describe it as "
            f"'data.{name}' in the site's gradward.json"
        )
    spec = {"name": name, **_BUILT_IN[name]}
    if "path" not in spec:
        return spec
    root = data_root()
    if root is None:
        raise DataError(
            f"the files of data set '{name}' are not here; set GRADWARD_DATA to their folder or "
            f"describe them as 'data.{name}' in the site's gradward.json"
        )
    return spec | {key: str(root / spec[key]) for key in _FILES if key in spec}
