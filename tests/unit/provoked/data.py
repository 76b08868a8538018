"""In a site's data."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from gradward.data import ImageSet, load_public_set, load_split
from gradward.data.catalog import dataset_spec
from gradward.data.folder import read_folder, read_public_folder
from gradward.data.form import ImageForm
from gradward.data.splits import split_by_patient
from gradward.metrics.reidentification import build_gallery

from .. import test_data_datalist as lists
from .. import test_data_npz as npz
from . import gradward, mistake

SMALL = ImageForm((32, 32), 3)


def load(spec: Any, split: str = "training", **changes: Any) -> Any:
    wanted: dict[str, Any] = {"site": "site-1", "image_size": (32, 32), "channels": 3}
    return load_split(spec, split, **(wanted | changes))


def images(number: int = 4, side: int = 8) -> ImageSet:
    return ImageSet(torch.rand(number, 3, side, side), torch.arange(number) % 2)


@mistake("there is no data set")
def unknown(folder: Path) -> None:
    gradward("data", "moon")


@mistake("data set … has training images for")
def other_site(folder: Path) -> None:
    gradward("data", "histology", "--site", "charite")


@mistake("the files of data set … are not here")
def no_files(folder: Path) -> None:
    with patch("gradward.data.catalog.data_root", lambda: None):
        dataset_spec("pneumonia")


@mistake("the folder that GRADWARD_DATA names")
def wrong_root(folder: Path) -> None:
    with patch.dict("os.environ", {"GRADWARD_DATA": "/nowhere"}):
        gradward("data", "pneumonia")


@mistake("'data.…' of the site's gradward.json must be")
def no_object(folder: Path) -> None:
    dataset_spec("ward", {"ward": 3})


@mistake("'format' of data set …")
def other_format(folder: Path) -> None:
    load({"name": "ward", "format": "zip"})


@mistake("split must be one of")
def other_split(folder: Path) -> None:
    load(dataset_spec("histology"), "trainings")


@mistake("data set … lacks the setting")
def no_path(folder: Path) -> None:
    load({"name": "ward", "format": "npz"})


@mistake("data set … has unknown settings")
def unknown_setting(folder: Path) -> None:
    load({"name": "ward", "format": "npz", "paht": "x"})


@mistake("the … that … of … names does not exist")
def gone(folder: Path) -> None:
    lists._load({"format": "datalist", "name": "ward", "path": "/nowhere.json"})


@mistake("image_size must be [height, width], got")
def one_side(folder: Path) -> None:
    load(dataset_spec("histology"), image_size=(32,))


@mistake("the data list of … is not a JSON object of lists")
def broken_list(folder: Path) -> None:
    spec = lists._write(folder)
    (folder / "list.json").write_text("[")
    lists._load(spec)


@mistake("the data list of … has nothing under")
def no_key(folder: Path) -> None:
    spec = lists._write(folder)
    lists._load(spec | {"training": "elsewhere"})


@mistake("entry … has no 'label'")
def no_label(folder: Path) -> None:
    lists._load(lists._write(folder, **{"site-1": [{"image": "jane-doe-1.png"}]}))


def entry(folder: Path, name: str, make: Any, label: Any = 0) -> None:
    """Load a list of one file."""
    make(folder / name)
    lists._load(lists._write(folder, **{"site-1": [{"image": name, "label": label}]}))


@mistake("entry … cannot be read as an image")
def truncated(folder: Path) -> None:
    entry(folder, "jane.png", lambda file: file.write_bytes(b"\x89PNG\r\n"))


@mistake("entry … is not PNG, JPEG, BMP, DICOM or NIfTI")
def other_file(folder: Path) -> None:
    entry(folder, "jane.txt", lambda file: file.write_text("a note"))


@mistake("entry … is missing")
def missing(folder: Path) -> None:
    entry(folder, "jane.png", lambda file: None)


@mistake("entry … has … slices")
def no_slice(folder: Path) -> None:
    import nibabel
    import numpy as np

    volume = nibabel.nifti1.Nifti1Image(np.ones((8, 8, 3), np.float32), np.eye(4))
    nibabel.loadsave.save(volume, folder / "scan.nii")
    items = [{"image": "scan.nii", "label": 0, "slice": 9}]
    lists._load(lists._write(folder, **{"site-1": items}))


@mistake("… declares no public images")
def no_public(folder: Path) -> None:
    load_public_set(lists._write(folder), name="ward", image_size=(10, 8), channels=1)


@mistake("the public images of data set … do not suffice")
def few_public(folder: Path) -> None:
    spec = npz._write(folder) | {"public": {"split": "val", "count": 2}}
    load_public_set(spec, name="ward", image_size=(12, 12), channels=1)


@mistake("the file of … cannot be read as an npz")
def no_npz(folder: Path) -> None:
    spec = npz._write(folder)
    Path(spec["path"]).write_bytes(b"PK")
    npz._load(spec, "training")


@mistake("… has no share for …")
def no_share(folder: Path) -> None:
    npz._load(npz._write(folder), "training", "site-9")


@mistake("the csv that 'patients' of … names must have the columns split")
def other_columns(folder: Path) -> None:
    spec = npz._write(folder)
    Path(spec["patients"]).write_text("name\nJane\n")
    npz._load(spec, "training")


@mistake("the csv that 'patients' of … names knows no image of the data list")
def strangers(folder: Path) -> None:
    spec = lists._write(folder)
    (folder / "ids.csv").write_text("file,patient_id\nother.png,p1\n")
    lists._load(spec | {"patients": str(folder / "ids.csv")})


@mistake("the shares of a split must be positive")
def no_shares(folder: Path) -> None:
    split_by_patient(["a", "b"], [1, -1])


@mistake("the folder of … does not exist")
def no_folder(folder: Path) -> None:
    read_folder(folder / "nowhere", SMALL, "--truth")


@mistake("the folder of … holds no image files")
def empty_folder(folder: Path) -> None:
    read_folder(folder, SMALL, "--truth")


@mistake("the folders in that of … must be named by their class")
def named_folder(folder: Path) -> None:
    for name in ("0", "benign"):
        (folder / name).mkdir()
    read_public_folder(folder, SMALL, 2, "--public")


@mistake("images must be finite and lie in [0, 1]")
def outside(folder: Path) -> None:
    ImageSet(2 * torch.ones(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))


@mistake("public images of shape … do not fit")
def other_shape(folder: Path) -> None:
    from gradward.data.images import require_same_form

    require_same_form(images(), images(side=16))


@mistake("'data.…' in local")
def relative(folder: Path) -> None:
    from nvflare.apis.fl_context import FLContext

    from gradward.flare.site import open_site

    from ..flare_desk import Desk, experiment

    desk = Desk(folder, experiment())
    desk.settings(data={"ward": {"format": "npz", "path": "ward.npz"}})
    fl_ctx: FLContext = desk.task("train")
    open_site(fl_ctx).dataset_spec("ward")


@mistake("the gallery needs at least")
def small_gallery(folder: Path) -> None:
    build_gallery(images(), images(), torch.tensor([0]), 100)
