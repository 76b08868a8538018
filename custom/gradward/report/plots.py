"""How the reports draw: one style, one way from a matplotlib figure to an inline SVG.

The SVG keeps its text as text and takes its colours from the page's style sheet, so that it follows
a dark scheme and prints as the page does.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradward.report.table import show

INK, MUTED, LINE = "#1b1f24", "#545d68", "#d5dae0"
REAL, CONTROL = "#0b5cad", "#8a5300"
# Colours of further series; each comes with a marker and dashes of its own, see `series_style`.
SERIES: Final = (REAL, CONTROL, "#1d6b45", "#7a3b8f", "#a11212", "#3f4a56")

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    **dict(
        zip(
            SERIES,
            ("--real", "--control", "--third", "--fourth", "--fifth", "--sixth"),
            strict=True,
        )
    ),
}
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES: Final = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (8, 2)))
_PIXELS_PER_INCH = 72

# Any: matplotlib types the keys as one long literal.
STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gradward",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.5,
    "text.color": INK,
    # A site may have a dollar sign in its name.
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.dpi": _PIXELS_PER_INCH,
    "savefig.transparent": True,
}


def styled() -> Any:
    """Return a context in which figures are made and drawn; it is not safe across threads."""
    return mpl.rc_context(STYLE)


def new_figure(width: int, height: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``width`` by ``height`` CSS pixels with ``rows`` axes that share x.

    It belongs to no window and to no global list: nothing has to be closed.
    """
    figure = Figure(figsize=(width / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH))
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)
    # Fixed margins: panels beside each other line up, and drawing is faster than with a layout.
    figure.subplots_adjust(
        left=50 / width, right=1 - 8 / width, bottom=36 / height, top=1 - 8 / height, hspace=0.22
    )
    return figure, list(axes[:, 0])


def series_style(number: int) -> dict[str, Any]:
    """Return colour, marker and dashes of series ``number``: colour is never the only carrier."""
    place = number % len(SERIES)
    return {"color": SERIES[place], "marker": _MARKERS[place], "linestyle": _DASHES[place]}


def rounds_axis(axis: Axes, rounds: Sequence[int]) -> None:
    """Make x the rounds, whole numbers with a little room at the sides."""
    axis.set_xlabel("round")
    axis.set_xlim(min(rounds) - 0.3, max(rounds) + 0.3)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def to_svg(figure: Figure, description: str) -> Markup:
    """Draw a figure as an inline SVG image.

    Args:
        figure: drawn within :func:`styled`.
        description: what somebody who does not see it should know, with the numbers.

    Returns:
        An ``svg`` element whose ids do not clash with those of others, the same for the same
        figure and description.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    body = stream.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body)
    if box is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    width, height = box.groups()
    body = body[body.index(">") + 1 :]
    # Its one rule would hold for the whole page.
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    mark = hashlib.sha256((description + body).encode()).hexdigest()[:8]
    body = _keep_ids(body, mark).replace("xlink:href", "href")
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    body = re.sub(r"\n\s*", "\n", body)
    return Markup(
        f'<svg class="plot" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(description)}">{body}'
    )


def numbers(values: Sequence[float | None], most: int = 12) -> str:
    """Say values in words: each where there are few, else their range, middle and last.

    >>> numbers([0.5, None, 1.0])
    '0.50, none, 1.00'
    """
    present = [value for value in values if value is not None]
    if not present:
        return "no value"
    if len(values) <= most:
        return ", ".join("none" if value is None else show(value) for value in values)
    middle = sorted(present)[len(present) // 2]
    return (
        f"{len(present)} values from {show(min(present))} to {show(max(present))}, "
        f"median {show(middle)}, last {show(present[-1])}"
    )


def _keep_ids(body: str, mark: str) -> str:
    """Leave only the ids that something points at, and make them this figure's own."""
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', body))
    body = re.sub(
        r' id="([\w.-]+)"', lambda m: f' id="{mark}-{m[1]}"' if m[1] in used else "", body
    )
    return re.sub(r'(url\(|href=")#([\w.-]+)', rf"\1#{mark}-\2", body)
