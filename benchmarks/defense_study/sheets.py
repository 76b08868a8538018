"""Contact sheets: the victims and what each attacker made of them. The study's data is public."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

from .protocol import Trial
from .scoring import SHOWN, Scorer
from .store import CellKey

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def save_sheet(folder: Path, cell: CellKey, trial: Trial, scorer: Scorer) -> Path:
    """Write a PNG with a row for each attack, below the true images.

    Args:
        folder: made if missing.
        cell: gives name and title.
        trial: of the true images.
        scorer: that has scored all attacks.
    """
    truths = dict(enumerate(trial.victim_images.images[:SHOWN]))
    rows = {"x": truths, **scorer.pictures}
    figure, grid = plt.subplots(
        len(rows),
        len(truths),
        figsize=(len(truths) + 2, len(rows) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for line, (attack, pictures) in zip(grid, rows.items(), strict=True):
        for place, axes in enumerate(line):
            axes.axis("off")
            if place in pictures:
                picture = pictures[place].clamp(0, 1).permute(1, 2, 0).numpy()
                axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        line[0].text(-0.1, 0.5, attack, ha="right", va="center", transform=line[0].transAxes)
    figure.suptitle(f"{cell.set}: {cell.arm} {cell.setting}")
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "_", f"{cell.set}-{cell.arm}-{cell.setting}")
    file = folder / f"{name}.png"
    figure.savefig(file, dpi=60, bbox_inches="tight")
    plt.close(figure)
    return file
