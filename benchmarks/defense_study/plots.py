"""The frontier, and the certified curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from .points import Point

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_CERTIFIED = ("dp-sgd", "dp-class")
_REFERENCES = {"none": "--", "public-only": ":"}


def plot_frontier(points: Sequence[Point], file: Path) -> bool:
    """Plot balanced accuracy against what informed attackers got; return whether there was any."""
    shown = [point for point in points if point.informed is not None]
    if not shown:
        return False
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for number, arm in enumerate(dict.fromkeys(point.arm for point in shown)):
        own = [point for point in shown if point.arm == arm]
        # Colours repeat after ten, markers after eleven: no two arms look alike.
        marker = "os^vDP*X<>p"[number % 11]
        utility = [point.utility for point in own]
        leaks = [point.informed for point in own if point.informed is not None]
        left.plot([x.mse.value for x in leaks], utility, marker + "-", label=arm)
        right.plot([x.linkage.value for x in leaks], utility, marker + "-", label=arm)
    left.set_xlabel("attacker's MSE, relative to guessing the class mean")
    right.set_xlabel("linkage")
    left.set_ylabel("balanced accuracy on clean images")
    right.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(shown[0].set)
    _save(figure, file)
    return True


def plot_certified(points: Sequence[Point], file: Path) -> bool:
    """Plot balanced accuracy over epsilon; return whether any certified arm was run."""
    curves = {arm: _epsilons(points, arm) for arm in _CERTIFIED}
    if not any(curves.values()):
        return False
    figure, axes = plt.subplots(figsize=(6, 4))
    for arm, curve in curves.items():
        if curve:
            axes.plot(*zip(*sorted(curve), strict=True), "o-", label=arm)
    for arm, style in _REFERENCES.items():
        for point in points:
            if point.arm == arm and point.status == "ok":
                axes.axhline(point.utility, linestyle=style, color="black", label=arm)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("epsilon a patient, delta 1e-5")
    axes.set_ylabel("balanced accuracy on clean images")
    axes.legend(fontsize="small")
    axes.set_title(points[0].set)
    _save(figure, file)
    return True


def _epsilons(points: Sequence[Point], arm: str) -> list[tuple[float, float]]:
    found = []
    for point in points:
        kind, _, value = point.setting.rpartition("=")
        if point.arm == arm and point.status == "ok" and kind in ("eps", ""):
            found.append((float(value), point.utility))
    return found


def _save(figure: plt.Figure, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
