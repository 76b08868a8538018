"""The embedded histology patches."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry
from skimage.filters import threshold_otsu

from gradward.data import PARTS, DataError, ImageSet, dataset_spec, load_public_set, load_split
from gradward.data.embedded import PATCH, SITE_SHARES, public_corners

SPEC = dataset_spec("histology")
SIZES = {"site-1": 1, "site-2": 32, "site-3": 48, "site-4": 16, "site-5": 16, "site-6": 15}


def _load(split: str, site: str = "site-2") -> ImageSet:
    return load_split(SPEC, split, site=site, image_size=(32, 32), channels=3)


def _places(images: ImageSet) -> list[tuple[int, int, int]]:
    """Find each native patch in the picture on the 32-pixel grid; give place and true label."""
    picture = immunohistochemistry()
    stain = rgb2hed(picture)[..., 2]
    positive = stain > threshold_otsu(stain)
    grid = {
        picture[r : r + 32, c : c + 32].tobytes(): (
            r,
            c,
            int(positive[r : r + 32, c : c + 32].sum() > 512),
        )
        for r in range(0, 512, 32)
        for c in range(0, 512, 32)
    }
    pixels = (images.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [grid[np.ascontiguousarray(patch).tobytes()] for patch in pixels]


def test_site_shares_are_fixed_disjoint_and_rightly_labelled() -> None:
    seen: set[tuple[int, int]] = set()
    for site, size in SIZES.items():
        images = _load("training", site)
        places = _places(images)
        assert len(images) == size and images.patients is None
        assert [label for _, _, label in places] == images.labels.tolist()
        seen |= {place[:2] for place in places}
        assert torch.equal(images.images, _load("training", site).images)
    assert len(seen) == 128 and SIZES == SITE_SHARES


def test_roles_use_their_own_quadrants_and_both_classes() -> None:
    quadrants: dict[str, set[tuple[int, int]]] = {}
    held_out: list[tuple[int, int, int]] = []
    for split in ("training", "validation", "testing"):
        images = _load(split)
        assert set(images.labels.tolist()) == {0, 1}
        places = _places(images)
        quadrants[split] = {(r // 256, c // 256) for r, c, _ in places}
        held_out += places if split != "training" else []
    assert len(set(held_out)) == 64
    assert quadrants["validation"] == quadrants["testing"]
    assert not quadrants["training"] & quadrants["testing"]
    assert set(_load("training", "site-3").labels.tolist()) == {0, 1}
    public = {(r // 256, c // 256) for part in PARTS for r, c in public_corners(part)}
    assert len(public) == 1 and not public & (quadrants["training"] | quadrants["testing"])


def test_unknown_site_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"'hospital-a'; use one of these site names or give"):
        _load("training", "hospital-a")


def test_public_parts_share_no_pixel() -> None:
    covered = {}
    for part in PARTS:
        mask = np.zeros((512, 512), dtype=bool)
        for r, c in public_corners(part):
            mask[r : r + PATCH, c : c + PATCH] = True
        covered[part] = mask
    for one, other in combinations(PARTS, 2):
        assert not (covered[one] & covered[other]).any()


def test_public_set() -> None:
    public = load_public_set(SPEC, name="histology", image_size=(32, 32), channels=3)
    sizes = {part: len(public.part(part)) for part in PARTS}
    assert sizes == {"prior": 21, "control": 9, "decoys": 105, "canary": 9, "fit": 49}
    assert all(set(public.part(part).labels.tolist()) == {0, 1} for part in PARTS)
    picture = immunohistochemistry()
    row, column = public_corners("canary")[4]
    truth = picture[row : row + 32, column : column + 32].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(public.part("canary").images[4], truth, atol=1e-6)
    torch.testing.assert_close(public.prior_image, public.part("prior").images.mean(0))
    learned = {image.numpy().tobytes() for image in public.of_attacker.images}
    assert len(learned) == 21 + 49
    for part in ("control", "decoys", "canary"):
        assert not learned & {image.numpy().tobytes() for image in public.part(part).images}
    torch.testing.assert_close(public.mean_image, public.part("decoys").images.mean(0))
    assert public.name == "histology" and "copyright" in public.licence
    with pytest.raises(DataError, match="not 'gallery'"):
        public.part("gallery")


def test_checksum_does_not_depend_on_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradward.data import embedded

    native = load_public_set(SPEC, name="h", image_size=(32, 32), channels=3).checksum
    small = load_public_set(SPEC, name="h", image_size=(16, 20), channels=1)
    assert small.checksum == native and native.startswith("sha256:") and len(native) == 71
    assert small.part("fit").images.shape == (49, 1, 16, 20)
    picture, stained = embedded._picture()
    changed = picture.copy()
    changed[10, 300, 1] ^= 1
    monkeypatch.setattr(embedded, "_picture", lambda: (changed, stained))
    assert load_public_set(SPEC, name="h", image_size=(32, 32), channels=3).checksum != native


def test_grey_is_luma() -> None:
    colour, grey = _load("testing").images, None
    grey = load_split(SPEC, "testing", site="any", image_size=(32, 32), channels=1).images
    luma = 0.299 * colour[:, 0] + 0.587 * colour[:, 1] + 0.114 * colour[:, 2]
    torch.testing.assert_close(grey[:, 0], luma)


def test_unknown_settings_and_formats_name_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"unknown settings \['paht'\]; known are"):
        load_split(
            {"format": "embedded", "paht": "x"},
            "training",
            site="site-1",
            image_size=(8, 8),
            channels=3,
        )
    with pytest.raises(DataError, match="embedded, npz, datalist, got 'zip'"):
        load_split({"format": "zip"}, "training", site="s", image_size=(8, 8), channels=3)
    with pytest.raises(DataError, match="training, validation, testing, got 'train'"):
        _load("train")


@pytest.mark.parametrize(
    ("size", "channels"), [((32,), 3), ((0, 4), 1), ((4.0, 4), 1), ((4, 4), 2), (32, 1)]
)
def test_bad_forms(size: tuple[int, int], channels: int) -> None:
    with pytest.raises(DataError, match="must be"):
        load_split(SPEC, "training", site="site-1", image_size=size, channels=channels)
