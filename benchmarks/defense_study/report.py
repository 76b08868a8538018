"""Everything that is made of finished cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .claims import verdicts
from .plots import plot_certified, plot_frontier
from .points import Point, collect
from .store import CellResult
from .tables import table


def write_report(results: Sequence[CellResult], folder: Path) -> list[Path]:
    """Write tables and verdicts (Markdown) and plots (PNG) of all sets that have results.

    Args:
        results: of one kind of run.
        folder: where the files go.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_set: dict[str, list[Point]] = {}
    for point in collect(results):
        by_set.setdefault(point.set, []).append(point)
    written = [folder / "report.md"]
    parts = ["# Defences: utility against leakage", *verdicts(by_set)]
    for name, points in by_set.items():
        parts += [f"## {name}", table(points)]
        file = folder / f"frontier-{name}.png"
        if plot_frontier(points, file):
            written.append(file)
        file = folder / f"certified-{name}.png"
        if plot_certified(points, file):
            written.append(file)
    written[0].write_text("\n\n".join(parts) + "\n")
    return written
