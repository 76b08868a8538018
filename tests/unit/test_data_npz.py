"""MedMNIST files, made here and real ones."""

from __future__ import annotations

import csv
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradward.data import (
    PARTS,
    DataError,
    ImageSet,
    data_root,
    dataset_spec,
    load_public_set,
    load_split,
)

needs_data = pytest.mark.skipif(
    data_root() is None, reason="no sample data: set GRADWARD_DATA to run this on real images"
)
SITES = ["site-1", "site-2", "site-3"]


def _write(folder: Path, **replace: Any) -> dict[str, Any]:
    """Write 60/60/10 images of 12x12, two a patient; the first ten of val are train's."""
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 60), ("val", 60), ("test", 10)):
        arrays[f"{split}_images"] = draw.integers(0, 256, (count, 12, 12), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count)[:, None] % 3).astype(np.uint8)
    arrays = {k: v for k, v in (arrays | replace).items() if v is not None}
    np.savez(folder / "secret-name.npz", **arrays)
    with (folder / "ids.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "index", "patient_id"])
        for split, count in (("train", 60), ("val", 60), ("test", 10)):
            for i in range(count):
                shared = split == "val" and i < 10
                writer.writerow([split, i, f"{'train' if shared else split}-{i // 2}"])
    return {
        "format": "npz",
        "name": "made",
        "path": str(folder / "secret-name.npz"),
        "patients": str(folder / "ids.csv"),
        "sites": SITES,
    }


def _load(spec: dict[str, Any], split: str, site: str = "site-1") -> ImageSet:
    return load_split(spec, split, site=site, image_size=(12, 12), channels=1)


def _patients(images: ImageSet) -> set[str]:
    assert images.patients is not None
    return set(images.patients)


def test_sites_are_disjoint_by_patient_and_val_loses_their_patients(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    shares = [_load(spec, "training", site) for site in SITES]
    assert [len(share) for share in shares] == [20, 20, 20]
    for one, other in combinations(shares, 2):
        assert not _patients(one) & _patients(other)
    validation, testing = _load(spec, "validation"), _load(spec, "testing")
    assert len(validation) == 50 and len(testing) == 10
    assert not _patients(validation) & set().union(*map(_patients, shares))


def test_pixels_and_labels_are_those_of_the_file(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    raw = np.load(spec["path"])
    images = _load(spec, "testing")
    np.testing.assert_allclose(images.images[:, 0], raw["test_images"] / 255.0, atol=1e-6)
    assert images.labels.tolist() == raw["test_labels"].ravel().tolist()


def test_a_privacy_officer_finds_each_image_by_its_name(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    images = _load(spec, "training", "site-2")
    assert images.names is not None
    with np.load(spec["path"]) as file:
        for name, image in zip(images.names, images.images, strict=True):
            path, array, place = name.removesuffix("]").replace("]", "").split("[")
            assert (path, array) == (spec["path"], "train_images")
            np.testing.assert_allclose(image[0], file[array][int(place)] / 255, atol=1e-6)


def test_shares_and_colour(tmp_path: Path) -> None:
    colour = np.random.default_rng(1).integers(0, 256, (60, 12, 12, 3), dtype=np.uint8)
    spec = _write(tmp_path, train_images=colour) | {"shares": [0.5, 0.25, 0.25]}
    images = load_split(spec, "training", site="site-1", image_size=(6, 6), channels=3)
    assert images.images.shape == (30, 3, 6, 6)


def test_images_equal_to_the_pixel_stay_together(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    del spec["patients"]
    raw = dict(np.load(spec["path"]))
    raw["train_images"][::2] = raw["train_images"][0]
    raw["val_images"][3] = raw["train_images"][1]
    np.savez(spec["path"], **raw)
    shares = [_load(spec, "training", site) for site in SITES]
    copy = torch.from_numpy(raw["train_images"][0]).float() / 255
    holders = [int((s.images[:, 0] == copy).all((1, 2)).sum()) for s in shares]
    assert sorted(holders) == [0, 0, 30]
    assert shares[0].patients is None and len(_load(spec, "validation")) == 59


@pytest.mark.parametrize("split", ["train", "val"])
def test_public_patients_are_given_to_no_site(tmp_path: Path, split: str) -> None:
    spec = _write(tmp_path) | {"public": {"split": split, "count": 40, "licence": "CC0"}}
    public = load_public_set(spec, name="made", image_size=(12, 12), channels=1)
    parts = [_patients(public.part(part)) for part in PARTS]
    for one, other in combinations(parts, 2):
        assert not one & other
    reserved = set().union(*parts)
    assert public.licence == "CC0" and sum(len(public.part(p)) for p in PARTS) == 40
    sites = set().union(*(_patients(_load(spec, "training", s)) for s in SITES))
    assert not reserved & (sites | _patients(_load(spec, "testing")))
    assert not (sites | reserved) & _patients(_load(spec, "validation"))


def test_checksum_follows_pixels_not_form(tmp_path: Path) -> None:
    spec = _write(tmp_path) | {"public": {"split": "train", "count": 40}}

    def checksum(side: int, channels: int) -> str:
        return load_public_set(
            spec, name="made", image_size=(side, side), channels=channels
        ).checksum

    before = checksum(12, 1)
    assert before == checksum(7, 3)
    raw = dict(np.load(spec["path"]))
    raw["train_images"][:, 5, 5] ^= 1
    np.savez(spec["path"], **raw)
    assert checksum(12, 1) != before


def test_too_few_public_images(tmp_path: Path) -> None:
    spec = _write(tmp_path) | {"public": {"split": "train", "count": 4}}
    with pytest.raises(DataError, match="do not suffice"):
        load_public_set(spec, name="made", image_size=(12, 12), channels=1)


@pytest.mark.parametrize(
    ("replace", "text"),
    [
        ({"val_labels": None}, "cannot be read as an npz"),
        ({"train_images": np.zeros((60, 12), dtype=np.uint8)}, "train_images"),
        ({"train_images": np.zeros((60, 12, 12), dtype=np.float32)}, "uint8"),
        ({"test_labels": np.zeros((9, 1), dtype=np.uint8)}, "test_labels"),
        ({"test_labels": np.full((10, 1), -1)}, "negative"),
        ({"test_labels": np.zeros((10, 14), dtype=np.uint8)}, "one integer"),
        ({"test_labels": np.array([{}] * 10)}, "cannot be read as an npz"),
    ],
)
def test_wrong_contents(tmp_path: Path, replace: dict[str, Any], text: str) -> None:
    spec = _write(tmp_path, **replace)
    with pytest.raises(DataError, match=text) as caught:
        _load(spec, "training")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"path": "nowhere/secret.npz"}, "correct 'path'"),
        ({"path": 3}, "'path' of data set 'made' must be str"),
        ({"sites": None}, "lacks the setting 'sites'"),
        ({"shares": [1.0]}, "one fraction for each"),
        ({"shares": ["a", 1, 1]}, "one fraction for each"),
        ({"patients": "nowhere.csv"}, "correct 'patients'"),
        ({"public": {"split": "test", "count": 3}}, "'train' or 'val'"),
        ({"public": {"split": "val", "count": 60}}, "1 to 59"),
        ({"publik": 1}, "unknown settings"),
    ],
)
def test_wrong_settings(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        _load(_write(tmp_path) | change, "validation")
    assert "secret" not in str(caught.value) and "nowhere" not in str(caught.value)


def test_damaged_file_and_foreign_csv(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    content = Path(spec["path"]).read_bytes()
    Path(spec["path"]).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="get it again") as caught:
        _load(spec, "training")
    assert "secret" not in str(caught.value)
    spec = _write(tmp_path)
    (tmp_path / "ids.csv").write_text("split,index,patient_id\nTRAIN,0,x\n")
    with pytest.raises(DataError, match="knows no image"):
        _load(spec, "training")
    (tmp_path / "ids.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="columns split, index"):
        _load(spec, "training")


def test_unknown_site(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no share for 'site-9'; add it"):
        _load(_write(tmp_path), "training", "site-9")


@needs_data
def test_pneumonia_against_the_csv() -> None:
    spec = dataset_spec("pneumonia")
    with Path(spec["patients"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    raw = dict(np.load(spec["path"]))
    truth: dict[bytes, set[str]] = {}
    for row in rows:
        pixels = raw[f"{row['split']}_images"][int(row["index"])].tobytes()
        truth.setdefault(pixels, set()).add(row["patient_guess"])

    def load(split: str, site: str) -> ImageSet:
        return load_split(spec, split, site=site, image_size=(28, 28), channels=1)

    public = load_public_set(spec, name="pneumonia", image_size=(28, 28), channels=1)
    roles = {part: public.part(part) for part in PARTS}
    roles |= {site: load("training", site) for site in SITES}
    roles |= {split: load(split, "site-1") for split in ("validation", "testing")}
    held = {}
    for role, images in roles.items():
        pixels = [image.tobytes() for image in (images.images[:, 0] * 255).round().byte().numpy()]
        held[role] = (set(pixels), set().union(*(truth[p] for p in pixels)) - {""})
    for one, other in combinations(roles, 2):
        assert not held[one][0] & held[other][0], (one, other)
        assert not held[one][1] & held[other][1], (one, other)
    assert len(roles["decoys"]) >= 100
    assert len(roles["validation"]) == 188 and len(roles["testing"]) == 312
    assert sum(len(roles[site]) for site in SITES) == 4708 - sum(len(roles[p]) for p in PARTS)


@needs_data
@pytest.mark.parametrize("name", ["breast", "mnist", "fashion-mnist"])
def test_other_built_in_files_load(name: str) -> None:
    spec = dataset_spec(name)
    images = load_split(spec, "training", site="site-2", image_size=(28, 28), channels=1)
    public = load_public_set(spec, name=name, image_size=(28, 28), channels=1)
    assert len(images) >= 90 and len(public.part("decoys")) >= 100
