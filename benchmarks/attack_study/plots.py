"""Quality against CPU time, a panel a case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from .cases import CASES
from .summary import Row

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

_COLUMNS = 3
_CONTROL = ", control"
_COLOURS = matplotlib.color_sequences["tab20"]
_STYLES = {"gradward": "-", "breaching": "--", "leakpro": ":"}


def plot(rows: Sequence[Row], file: Path) -> bool:
    """Plot the medians with their range; return whether there was anything to plot."""
    shown = [row for row in rows if row.count]
    names = list(dict.fromkeys(row.case for row in shown))
    if not names:
        return False
    columns = min(_COLUMNS, len(names))
    figure, grid = plt.subplots(
        math.ceil(len(names) / columns), columns, squeeze=False,
        figsize=(5 * columns, 3.6 * math.ceil(len(names) / columns)),
    )  # fmt: skip
    for axes, name in zip(grid.flat, names, strict=False):
        _panel(axes, name, [row for row in shown if row.case == name])
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return True


def _panel(axes: Axes, name: str, rows: Sequence[Row]) -> None:
    # From a prior what counts is what was recovered beyond it; else decibels tell exactness.
    measure = "recovered" if CASES[name].start == "prior" else "psnr"
    # A control has the colour of what it is the control of.
    names = list(dict.fromkeys(row.contender.removesuffix(_CONTROL) for row in rows))
    for contender in dict.fromkeys(row.contender for row in rows):
        own = [row for row in rows if row.contender == contender]
        middle = [row.median(measure) for row in own]
        axes.errorbar(
            [row.cpu_seconds for row in own],
            middle,
            yerr=[
                [m - min(row.values[measure]) for m, row in zip(middle, own, strict=True)],
                [max(row.values[measure]) - m for m, row in zip(middle, own, strict=True)],
            ],
            linestyle="-." if own[0].control else _STYLES[own[0].tool],
            color=_COLOURS[names.index(contender.removesuffix(_CONTROL))],
            marker="o",
            markerfacecolor="white" if own[0].control else None,
            markersize=4,
            elinewidth=0.6,
            label=contender,
        )
    axes.set_title(name, fontsize=10)
    axes.set_xlim(left=0)
    axes.set_xlabel("CPU seconds, one thread")
    axes.set_ylabel("recovered fraction" if measure == "recovered" else "PSNR, dB")
    axes.spines[["top", "right"]].set_visible(False)
    if measure == "recovered":
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.set_ylim(-1, 1.05)
    axes.legend(fontsize=6, frameon=False)
