"""Make a data set up, as a hospital may have one: PNG files, a folder a patient, and a data list.

The pictures are patches of the histology picture that scikit-image ships; a patch with more than
half of its area stained is of class 1. Run it in an empty folder: it writes `own_data/`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry
from skimage.filters import threshold_otsu

SIDE = 40
# Rows of the picture, in pixels: no two keys of the list share one.
ROWS = {"sites": (0, 200), "validation": (200, 280), "testing": (280, 360), "public": (360, 512)}
SITES = {"site-1": 1, "site-2": 24, "site-3": 24}


def patches(first: int, last: int, step: int) -> list[tuple[np.ndarray, int]]:
    """Return the patches between two rows of the picture, each with its class."""
    picture = immunohistochemistry()
    stain = rgb2hed(picture)[..., 2]
    stained = stain > threshold_otsu(stain)
    corners = [
        (row, column)
        for row in range(first, last - SIDE + 1, step)
        for column in range(0, picture.shape[1] - SIDE + 1, step)
    ]
    windows = [np.s_[row : row + SIDE, column : column + SIDE] for row, column in corners]
    return [(picture[window], int(stained[window].mean() > 0.5)) for window in windows]


def main() -> None:
    """Write the pictures and `list.json`."""
    root = Path("own_data")
    listed: dict[str, list[dict[str, object]]] = {}

    def write(key: str, found: list[tuple[np.ndarray, int]]) -> None:
        for number, (picture, label) in enumerate(found):
            patient = f"{key}-patient-{number // 2 + 1}"
            file = root / patient / f"{number % 2}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
            entry = {"image": str(file.relative_to(root)), "label": label, "patient": patient}
            listed.setdefault(key, []).append(entry)

    images = patches(*ROWS["sites"], step=SIDE)
    # Shuffled by a rule, so that each site has both classes.
    images = [images[(17 * number) % len(images)] for number in range(len(images))]
    for site, count in SITES.items():
        write(site, images[:count])
        images = images[count:]
    write("validation", patches(*ROWS["validation"], step=SIDE))
    write("testing", patches(*ROWS["testing"], step=SIDE))
    # The attacker's images may overlap: a gallery wants 100 decoys.
    write("public", patches(*ROWS["public"], step=16))
    (root / "list.json").write_text(json.dumps(listed, indent=1))
    settings = {
        "data": {
            "ward": {
                "format": "datalist",
                "path": str((root / "list.json").resolve()),
                "public": {"keys": ["public"], "licence": "no known copyright restrictions"},
            }
        }
    }
    Path("gradward.json").write_text(json.dumps(settings, indent=2))
    print({key: len(entries) for key, entries in listed.items()})


if __name__ == "__main__":
    main()
