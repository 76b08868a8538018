"""Everything that is made of finished cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .claims import verdicts
from .federation import FULL
from .plots import plot_certified, plot_frontier
from .points import Point, collect
from .protocol import FIRST_SEED
from .store import LAST_ROUNDS, CellResult
from .tables import table

_PROTOCOL = f"""\
Three sites average their models for {FULL.rounds} rounds. Every arm starts from a model trained
on the public part, at most a tenth of the patients and none of the sites'. Utility is the balanced
accuracy on clean test images, the mean over the last {LAST_ROUNDS} rounds; cost and gain are paired
by seed. Leakage is the best of all attackers who know the defence and the label, on {FULL.victims}
images of the first site a seed, each among 100 candidates of its class from other patients.
Gradient inversions that know the defence are dear and attack {FULL.adapted} images, of seed
{FIRST_SEED} alone (the columns of victims tell). "Naive" attackers know neither defence nor label.
MSE is relative to that of the class mean and cut at 1. Each bound holds by itself with 95 %.

The learned inverter and the linkage by simulation attack one-image updates of the first round; the
naive inversion batches of 1 and 4 in the first round (and, of {FULL.inverted} images, in a middle
and a late one: see the JSON lines), the adapted inversion batches of 1 in an early and a late one.
The oracle holds what the site trained on: of noisy or erased images one draw, which favours those
baselines, of the perturbation the latent itself."""


def write_report(
    frontier: Sequence[CellResult], certified: Sequence[CellResult], folder: Path
) -> list[Path]:
    """Write tables and verdicts (Markdown) and plots (PNG) of all sets that have results.

    Args:
        frontier: results of the defences over their ranges.
        certified: results over epsilon; apart, because each part is paired with its own
            undefended federation.
        folder: where the files go.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranges, curves = _by_set(frontier), _by_set(certified)
    written = [folder / "report.md"]
    parts = ["# Defences: utility against leakage", _PROTOCOL, *verdicts(ranges, curves)]
    for name, points in ranges.items():
        parts += [f"## {name}", table(points)]
    for name, points in curves.items():
        parts += [f"## {name}: the certified curve", table(points)]
    if plot_frontier(ranges, folder / "frontier.png"):
        written.append(folder / "frontier.png")
    if plot_certified(curves, folder / "certified.png"):
        written.append(folder / "certified.png")
    written[0].write_text("\n\n".join(parts) + "\n")
    return written


def _by_set(results: Sequence[CellResult]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in collect(results):
        found.setdefault(point.set, []).append(point)
    return found
