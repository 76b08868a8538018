"""The frontier, and the certified curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from .points import Leakage, Point
from .statistics import Interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Ours in full colours and on top, what others offer in muted ones.
_STYLES = {
    "input-noise": ("#d9822b", "s"),
    "erasing": ("#b8a07e", "P"),
    "update-noise": ("#8c6d46", "v"),
    "pruning": ("#7f8c3c", "^"),
    "dual-pruning": ("#a9b26d", "<"),
    "no-buffers": ("#a8a8a8", "X"),
    "group-norm": ("#6f6f6f", "p"),
    "bido": ("#c77ba5", "d"),
    "dp-sgd": ("#c0392b", "D"),
    "class-hiding": ("#7d4ab8", "*"),
    "uniform": ("#6fb3e0", "o"),
    "class": ("#159a7c", "h"),
    "learned": ("#1456a8", "o"),
}
_OURS = ("learned", "uniform", "class", "class-hiding")
_TITLES = {
    "mnist": "MNIST",
    "fashion": "Fashion-MNIST",
    "pneumonia": "PneumoniaMNIST",
    "breast": "BreastMNIST",
    "chest-xray": "chest X-rays, 64x64",
    "histology": "histology",
    "mnist-1500": "MNIST, sites of 1,500",
    "pneumonia-1500": "PneumoniaMNIST, sites of 1,500",
}
_MEASURES = ("linkage", "picture")
_LABELS = {
    "linkage": "linkage: victims found among 100 of their class",
    "picture": "1 - attacker's error / class mean's error",
}
_CERTIFIED = {"dp-class": "#1456a8", "dp-sgd": "#c0392b"}
# Below this, utility is lost and only squeezes the rest of a panel.
_LEAST = -15.0


def plot_frontier(by_set: Mapping[str, Sequence[Point]], file: Path) -> bool:
    """Plot what a defence costs against what the best informed attacker gets.

    A column for each set, a row for each measure; the upper left corner is where one wants to be.

    Returns:
        Whether there was anything to plot.
    """
    kept = {name: [p for p in points if p.informed and p.cost] for name, points in by_set.items()}
    shown = {name: own for name, own in kept.items() if any(p.arm in _STYLES for p in own)}
    if not shown:
        return False
    columns = len(shown)
    figure, grid = plt.subplots(
        len(_MEASURES), columns, figsize=(3.6 * columns + 1.6, 6.4), squeeze=False, sharex=True
    )
    for column, (name, points) in zip(grid.T, shown.items(), strict=True):
        column[0].set_title(_TITLES.get(name, name), fontsize=11)
        for axes, measure in zip(column, _MEASURES, strict=True):
            _panel(axes, points, measure)
    for line, measure in zip(grid, _MEASURES, strict=True):
        line[0].set_ylabel("balanced accuracy\nminus undefended, points")
        for axes in line:
            axes.set_xlabel(_LABELS[measure], fontsize=8)
    handles = {
        label: handle
        for axes in grid.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    order = [arm for arm in (*_OURS, *_STYLES, "public-only") if arm in handles]
    order = list(dict.fromkeys(order))
    figure.tight_layout(rect=(0, 0, 1 - 1.5 / (3.6 * columns + 1.6), 1))
    figure.legend(
        [handles[arm] for arm in order], order, loc="center right", frameon=False, fontsize=9
    )
    _save(figure, file)
    return True


def _panel(axes: Axes, points: Sequence[Point], measure: str) -> None:
    for arm, (colour, marker) in _STYLES.items():
        own = sorted((p for p in points if p.arm == arm), key=lambda point: point.utility)
        if not own:
            continue
        leaks = [_measured(point.informed, measure) for point in own if point.informed]
        costs = [point.cost for point in own if point.cost]
        x, y = [leak.value for leak in leaks], [-100 * cost.value for cost in costs]
        axes.errorbar(
            x,
            [max(value, _LEAST) for value in y],
            xerr=[
                [leak.value - leak.low for leak in leaks],
                [leak.high - leak.value for leak in leaks],
            ],
            yerr=_spread(costs),
            color=colour,
            marker=marker,
            markersize=9 if marker == "*" else 6,
            linewidth=1.6 if arm in _OURS else 1.0,
            elinewidth=0.5,
            alpha=1.0 if arm in _OURS else 0.85,
            zorder=3 if arm in _OURS else 2,
            label=arm,
        )
    for point in points:
        if point.arm == "public-only" and point.cost:
            axes.axhline(-100 * point.cost.value, color="black", linestyle=":", label="public-only")
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=1)
    heights = [max(-100 * point.cost.value, _LEAST) for point in points if point.cost]
    axes.set_ylim(min(heights) - 1, max(heights) + 1.5)
    axes.set_xlim(-0.04, 1.04)
    axes.spines[["top", "right"]].set_visible(False)


def _measured(leakage: Leakage | None, measure: str) -> Interval:
    assert leakage is not None  # the caller's condition
    if measure == "linkage":
        return leakage.linkage
    mse = leakage.mse
    return Interval(1 - mse.value, 1 - mse.high, 1 - mse.low)


def _spread(costs: Sequence[Interval]) -> list[float]:
    """Return half widths in points; none where a single seed has no bound."""
    halves = [100 * (cost.high - cost.value) for cost in costs]
    return [half if half < float("inf") else 0.0 for half in halves]


def plot_certified(by_set: Mapping[str, Sequence[Point]], file: Path) -> bool:
    """Plot balanced accuracy over epsilon, a panel for each set; return whether there was any."""
    shown = {
        name: points
        for name, points in by_set.items()
        if any(_epsilons(points, arm) for arm in _CERTIFIED)
    }
    if not shown:
        return False
    figure, (panels,) = plt.subplots(1, len(shown), figsize=(3.8 * len(shown), 3.4), squeeze=False)
    for axes, (name, points) in zip(panels, shown.items(), strict=True):
        for arm, colour in _CERTIFIED.items():
            curve = sorted(_epsilons(points, arm))
            if curve:
                epsilon, gain, half = zip(*curve, strict=True)
                axes.errorbar(epsilon, gain, yerr=half, fmt="o-", color=colour, label=arm)
        for point in points:
            if point.arm == "none" and point.gain:
                axes.axhline(
                    100 * point.gain.value, linestyle="--", color="black", label="undefended"
                )
        axes.axhline(0, linestyle=":", color="black", label="public-only")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator([1, 2, 4, 8, 16]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlabel("epsilon a patient, delta 1e-5")
        axes.set_title(_TITLES.get(name, name), fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("balanced accuracy\nminus public-only, points")
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    _save(figure, file)
    return True


def _epsilons(points: Sequence[Point], arm: str) -> list[tuple[float, float, float]]:
    """Return (epsilon, gain over public-only in points, half width) of an arm's settings."""
    found = []
    for point in points:
        kind, _, value = point.setting.rpartition("=")
        if point.arm == arm and point.gain is not None and kind in ("eps", ""):
            found.append((float(value), 100 * point.gain.value, _spread([point.gain])[0]))
    return found


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=130)
    plt.close(figure)
