"""MONAI data lists, made here and the real chest X-rays, and data sets by name."""

from __future__ import annotations

import csv
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradward.data import (
    PARTS,
    DataError,
    ImageSet,
    data_root,
    dataset_names,
    dataset_spec,
    load_public_set,
    load_split,
)
from gradward.data.entries import entries_of

needs_data = pytest.mark.skipif(
    data_root() is None, reason="no sample data: set GRADWARD_DATA to run this on real images"
)


def _write(folder: Path, **replace: Any) -> dict[str, Any]:
    """Write 80 pictures of 10 x 8, two a patient, and a list of them."""
    draw = np.random.default_rng(0)
    items = []
    for i in range(80):
        Image.fromarray(draw.integers(0, 256, (10, 8), dtype=np.uint8)).save(
            folder / f"jane-doe-{i}.png"
        )
        items.append({"image": f"jane-doe-{i}.png", "label": i % 2, "patient": f"p{i // 2}"})
    lists: dict[str, Any] = {
        "description": "a list",
        "training": items[:10],
        "site-1": items[10:20],
        "testing": items[20:40],
        "open": items[40:],
    }
    (folder / "list.json").write_text(json.dumps(lists | replace))
    return {"format": "datalist", "name": "ward", "path": str(folder / "list.json")}


def _load(spec: dict[str, Any], split: str = "training", site: str = "site-1") -> ImageSet:
    return load_split(spec, split, site=site, image_size=(10, 8), channels=1)


def test_site_key_wins_over_training(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    own, common = _load(spec), _load(spec, site="elsewhere")
    assert own.patients is not None and own.patients[0] == "p5" and len(own) == 10
    assert common.patients is not None and common.patients[0] == "p0"
    assert own.labels.tolist() == [0, 1] * 5
    truth = np.asarray(Image.open(tmp_path / "jane-doe-12.png")) / 255
    np.testing.assert_allclose(own.images[2, 0], truth, atol=1e-6)
    assert len(_load(spec | {"training": "open"})) == 40


def test_a_privacy_officer_finds_each_image_by_its_name(tmp_path: Path) -> None:
    own = _load(_write(tmp_path))
    assert own.names is not None
    for name, image in zip(own.names, own.images, strict=True):
        np.testing.assert_allclose(image[0], np.asarray(Image.open(name)) / 255, atol=1e-6)
    assert own.subset([3, 1]).names == (own.names[3], own.names[1])
    slices = [{"image": "scan.nii", "label": 0, "slice": 7, "volume": 1}]
    assert entries_of(slices, "training", tmp_path, {}, "a list")[0].name == (
        f"{tmp_path / 'scan.nii'}[volume 1][slice 7]"
    )


def test_one_held_out_key_is_halved_by_patient(tmp_path: Path) -> None:
    spec = _write(tmp_path) | {"validation": "testing"}
    validation, testing = _load(spec, "validation"), _load(spec, "testing")
    assert len(validation) == len(testing) == 10
    assert not set(validation.patients or ()) & set(testing.patients or ())


def test_root_and_sizes(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    (tmp_path / "lists").mkdir()
    moved = tmp_path / "lists" / "list.json"
    moved.write_text((tmp_path / "list.json").read_text())
    spec |= {"path": str(moved), "root": str(tmp_path)}
    images = load_split(spec, "training", site="site-1", image_size=(5, 6), channels=3)
    assert images.images.shape == (10, 3, 5, 6)


def test_public_parts_and_prior(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    held = json.loads(Path(spec["path"]).read_text())
    held["site-1"].append(held["open"][0])  # this patient is no longer public
    held["strings"] = ["jane-doe-44.png"]
    Path(spec["path"]).write_text(json.dumps(held))
    Image.fromarray(np.full((10, 8), 51, dtype=np.uint8)).save(tmp_path / "prior.png")
    spec["public"] = {"keys": ["open"], "licence": "CC0", "prior": "prior.png"}
    public = load_public_set(spec, name="ward", image_size=(10, 8), channels=1)
    parts = [set(public.part(part).patients or ()) for part in PARTS]
    assert all(parts) and sum(len(public.part(p)) for p in PARTS) == 38
    for one, other in combinations(parts, 2):
        assert not one & other
    assert not set().union(*parts) & {f"p{i}" for i in range(21)}
    assert float(public.prior_image.min()) == pytest.approx(0.2)
    other_form = load_public_set(spec, name="ward", image_size=(4, 4), channels=3)
    assert other_form.checksum == public.checksum and other_form.prior_image.shape == (3, 4, 4)
    pixels = np.asarray(Image.open(tmp_path / "jane-doe-60.png")).copy()
    pixels[3, 3] ^= 1
    Image.fromarray(pixels).save(tmp_path / "jane-doe-60.png")
    changed = load_public_set(spec, name="ward", image_size=(10, 8), channels=1)
    assert changed.checksum != public.checksum
    spec["public"] = {"path": spec["path"], "keys": ["open"]}
    elsewhere = load_public_set(spec, name="ward", image_size=(10, 8), channels=1)
    assert elsewhere.licence == "not stated"


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], "nothing under 'site-1'"),
        ([{"image": "jane-doe-1.png"}], "entry 0 of 'site-1' in data set 'ward' has no 'label'"),
        ([{"image": "jane-doe-1.png", "label": -1}], "0 or more"),
        ([{"image": "jane-doe-1.png", "label": "1"}], "whole number"),
        ([{"image": "jane-doe-1.png", "label": True}], "whole number"),
        ([{"image": "jane-doe-1.png", "label": 0, "slice": 1.5}], "'slice' of entry 0"),
        (["jane-doe-1.png"], "entry 0"),
        ([{"image": "jane" * 100, "label": 0}], "entry 0 of 'site-1' in data set 'ward' cannot"),
        ([{"label": 0}], "entry 0"),
        (
            [{"image": "jane-doe-1.png", "label": 0}, {"image": "jane-doe-99.png", "label": 0}],
            "entry 1 of 'site-1' in data set 'ward' is missing; check that entry",
        ),
    ],
)
def test_bad_entries(tmp_path: Path, items: list[Any], text: str) -> None:
    spec = _write(tmp_path, **{"site-1": items})
    with pytest.raises(DataError, match=text) as caught:
        _load(spec)
    assert "jane" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_one_corrupt_picture_fails_its_split_only(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    bad = tmp_path / "jane-doe-13.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(DataError, match="entry 3 of 'site-1' in data set 'ward' cannot be") as e:
        _load(spec)
    assert "jane" not in str(e.value) and e.value.__suppress_context__
    assert len(_load(spec, "testing")) == 20


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"path": "nowhere/jane.json"}, "correct 'path'"),
        ({"path": "nowhere" * 100}, "correct 'path'"),
        ({"root": "nowhere/jane"}, "folder that 'root' of data set 'ward' names does not exist"),
        ({"patients": "nowhere/jane.csv"}, "correct 'patients'"),
        ({"training": 3}, "'training' of data set 'ward' must be str"),
        ({"training": "{site}-old"}, "nothing under 'site-1-old'; its keys are"),
        ({"images": "x"}, "unknown settings"),
    ],
)
def test_wrong_settings(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        _load(_write(tmp_path) | change)
    assert "jane" not in str(caught.value) and "nowhere" not in str(caught.value)


def test_broken_list_and_csv(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    (tmp_path / "ids.csv").write_text("file,patient_id\njane-doe-10.png,q\n")
    Path(spec["path"]).write_text(
        json.dumps({"training": [{"image": f"jane-doe-{i}.png", "label": 0} for i in (10, 11)]})
    )
    images = _load(spec | {"patients": str(tmp_path / "ids.csv")})
    assert images.patients is not None and images.patients[0] == "q"
    assert _load(spec).patients is None
    (tmp_path / "ids.csv").write_text("file,patient_id\nother/jane-doe-10.png,q\n")
    with pytest.raises(DataError, match="knows no image of the data list"):
        _load(spec | {"patients": str(tmp_path / "ids.csv")})
    (tmp_path / "ids.csv").write_text("name,id\n1,2\n")
    with pytest.raises(DataError, match="columns file and patient_id"):
        _load(spec | {"patients": str(tmp_path / "ids.csv")})
    Path(spec["path"]).write_text("[1, 2")
    with pytest.raises(DataError, match="not a JSON object of lists"):
        _load(spec)


def test_public_set_must_be_declared(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    with pytest.raises(DataError, match="add the setting 'public'"):
        load_public_set(spec, name="ward", image_size=(8, 8), channels=1)
    spec["public"] = {"keys": ["open"], "prior": "nowhere.png"}
    with pytest.raises(DataError, match="the picture that 'prior' of 'public' of data set 'ward'"):
        load_public_set(spec, name="ward", image_size=(8, 8), channels=1)


def test_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADWARD_DATA", raising=False)
    assert data_root() is None
    assert dataset_spec("histology") == {"name": "histology", "format": "embedded"}
    with pytest.raises(DataError, match=r"set GRADWARD_DATA .*'data.chest-xray'"):
        dataset_spec("chest-xray")
    with pytest.raises(DataError, match=r"no data set 'lungs'; known are .*chest-xray"):
        dataset_spec("lungs")
    own = {"format": "npz", "path": "x.npz", "sites": ["a"]}
    assert dataset_spec("chest-xray", {"chest-xray": own}) == {"name": "chest-xray", **own}
    with pytest.raises(DataError, match="must be a JSON object"):
        dataset_spec("lungs", {"lungs": 3})  # type: ignore[dict-item]
    monkeypatch.setenv("GRADWARD_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match="correct GRADWARD_DATA") as caught:
        dataset_spec("mnist")
    assert "gone" not in str(caught.value)
    (tmp_path / "gone").mkdir()
    assert dataset_spec("mnist")["path"].startswith(str(tmp_path / "gone"))
    assert set(dataset_names()) >= {"histology", "chest-xray", "pneumonia", "breast", "mnist"}


@needs_data
def test_chest_xray_roles_share_no_patient() -> None:
    spec = dataset_spec("chest-xray")
    root = Path(spec["path"]).parent
    with (root / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    truth = {}
    for row in rows:
        pixels = np.asarray(Image.open(root / row["file"])).tobytes()
        truth[pixels] = (row["patient_id"], int(row["label"]))
    sites = ["site-1", "site-2", "site-3", "site-5", "site-6", "site-7", "site-9"]
    options: dict[str, Any] = {"image_size": (224, 224), "channels": 1}
    public = load_public_set(spec, name="chest-xray", **options)
    roles = {part: public.part(part) for part in PARTS}
    roles |= {site: load_split(spec, "training", site=site, **options) for site in sites}
    for split in ("validation", "testing"):
        roles[split] = load_split(spec, split, site="site-1", **options)
    held = {}
    for role, images in roles.items():
        found = [truth[i.tobytes()] for i in (images.images[:, 0] * 255).round().byte().numpy()]
        assert [label for _, label in found] == images.labels.tolist()
        assert images.patients == tuple(patient for patient, _ in found)
        held[role] = {patient for patient, _ in found}
    for one, other in combinations(roles, 2):
        assert not held[one] & held[other], (one, other)
    sizes = [len(roles[site]) for site in sites]
    assert sizes == [8, 32, 128, 8, 32, 128, 1] and len(roles["decoys"]) >= 100
    assert len(roles["validation"]) + len(roles["testing"]) == 100
    prior = np.asarray(Image.open(root / "prior_mean.png")) / 255
    np.testing.assert_allclose(public.prior_image[0], prior, atol=1e-6)
