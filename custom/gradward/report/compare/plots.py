"""The plots of a comparison: leakage a row, the frontier with accuracy, and the sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from gradward.report.compare.measures import Estimate
from gradward.report.compare.rows import Row, RunComparison
from gradward.report.plots import CONTROL, INK, MUTED, REAL, SERIES, series_style
from gradward.report.table import show

LEAKAGE = {"recovered": "Recovered fraction", "reid": "Re-identified share"}
LOG_FROM = 10
# Points between series that have the same x.
_ASIDE, _POINTS_PER_INCH = 5, 72
_MEASURE_STYLE: dict[str, Any] = {"capsize": 2.5, "elinewidth": 0.9}


@dataclass(frozen=True)
class Plot:
    """A figure and what somebody who does not see it should know, with the numbers."""

    figure: Figure
    caption: str
    description: str


def draw(comparison: RunComparison) -> dict[str, Plot]:
    """Draw what the rows allow, within :func:`gradward.report.plots.styled`.

    Returns:
        ``leakage`` always; ``frontier`` where two runs or more streamed their accuracy; ``sweep``
        where the runs differ in one numeric setting.
    """
    plots = {"leakage": _leakage(comparison.rows)}
    measured = [row for row in comparison.rows if not math.isnan(row.accuracy.mean)]
    # Sites of one run share its model: they alone make no frontier.
    if len({row.arm for row in measured}) > 1:
        plots["frontier"] = _frontier(measured, comparison.axis)
    if comparison.axis is not None:
        plots["sweep"] = _sweep(swept_groups(comparison.rows), comparison.axis)
    return plots


def swept_groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of each group of sites that took part in the sweep, by the value; baselines first."""
    groups: dict[tuple[tuple[str, ...], str], list[Row]] = {}
    for row in rows:
        if row.settings:
            groups.setdefault((row.sites, row.subject), []).append(row)
    return [
        sorted(group, key=lambda row: -math.inf if row.value is None else row.value)
        for group in groups.values()
        if len({row.value for row in group} - {None}) > 1
    ]


def row_name(row: Row) -> str:
    """Run and sites in few words."""
    sites = ", ".join(row.sites[:3])
    rest = f" and {len(row.sites) - 3} more" if len(row.sites) > 3 else ""
    return f"{row.arm}: {sites}{rest}"


def _leakage(rows: Sequence[Row]) -> Plot:
    figure, panels = _two_panels(1.0 + 0.36 * len(rows))
    for panel, (name, label) in zip(panels, LEAKAGE.items(), strict=True):
        for position, row in enumerate(rows):
            real, control = row.measured[name].real, row.measured[name].control
            _across(panel, control, position + 0.15, CONTROL, "s")
            _across(panel, real, position - 0.15, REAL, "o")
        panel.set_xlabel(label)
        panel.axvline(0, color=MUTED, linewidth=0.8)
        panel.grid(visible=True, axis="x")
        panel.grid(visible=False, axis="y")
        panel.set_ylim(len(rows) - 0.5, -0.5)
    panels[0].set_yticks(range(len(rows)), [_plain(row_name(row)) for row in rows])
    panels[0].plot([], [], color=REAL, marker="o", linestyle="", label="sites' updates")
    panels[0].plot([], [], color=CONTROL, marker="s", linestyle="", label="control")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return Plot(
        figure,
        "Leakage of each row beside its control: mean and standard deviation.",
        _told(rows, lambda row: "; ".join(_of_measure(row, name) for name in LEAKAGE)),
    )


def _frontier(rows: Sequence[Row], axis: str | None) -> Plot:
    figure, panels = _two_panels(4.2)
    groups = swept_groups(rows) if axis is not None else []
    for panel, (name, label) in zip(panels, LEAKAGE.items(), strict=True):
        for number, group in enumerate(groups):
            style = series_style(number)
            _frontier_points(panel, group, name, style, _plain(", ".join(group[0].sites)))
            for row in group:
                place = (row.measured[name].beyond.mean, row.accuracy.mean)
                text = "without" if row.value is None else f"{row.value:g}"
                panel.annotate(text, place, (4, 5), textcoords="offset points", fontsize=8)
        swept = [row for group in groups for row in group]
        for number, row in enumerate(row for row in rows if row not in swept):
            style = {**_row_style(number + len(groups)), "linestyle": ""}
            _frontier_points(panel, [row], name, style, _plain(row_name(row)))
        panel.set_xlabel(f"{label}, beyond control")
        panel.margins(0.12)
        panel.grid(visible=True, axis="both")
    panels[0].set_ylabel("accuracy")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    by_value = f" Numbers at the points: {axis}." if groups else ""
    return Plot(
        figure,
        "Accuracy of the shared model against leakage beyond control: mean and standard deviation. "
        f"Up and to the left is better.{by_value}",
        _told(
            rows,
            lambda row: (
                f"accuracy {show(row.accuracy.mean)}, beyond control "
                + ", ".join(f"{name} {show(row.measured[name].beyond.mean)}" for name in LEAKAGE)
            ),
        ),
    )


def _frontier_points(
    panel: Axes, rows: Sequence[Row], name: str, style: dict[str, Any], label: str
) -> None:
    beyond = [row.measured[name].beyond for row in rows]
    accuracy = [row.accuracy for row in rows]
    panel.errorbar(
        _means(beyond),
        _means(accuracy),
        xerr=_deviations(beyond),
        yerr=_deviations(accuracy),
        label=label,
        **style,
        **_MEASURE_STYLE,
    )


def _sweep(groups: Sequence[Sequence[Row]], axis: str) -> Plot:
    figure = Figure(figsize=(9.5, 4.8), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    drawn = []
    for number, group in enumerate(groups):
        curve = [row for row in group if row.value is not None]
        style, name = series_style(number), _plain(", ".join(group[0].sites))
        rdlv = [row.measured["rdlv"] for row in curve]
        real = [item.real for item in rdlv]
        drawn.append(_along(left, curve, real, label=f"RDLV, {name}", **style))
        control = {**style, "linestyle": ":", "markerfacecolor": "none"}
        beside = [item.control for item in rdlv]
        drawn.append(_along(left, curve, beside, label="its control", **control))
        for row in group:
            if row.value is None:
                left.axhline(row.measured["rdlv"].real.mean, color=style["color"], linewidth=0.7)
    # All sites of a run share its model, so any group tells the accuracy.
    shared = [row for row in groups[0] if row.value is not None]
    accuracy = {"color": INK, "marker": "x", "linestyle": "-.", "label": "accuracy"}
    drawn.append(_along(right, shared, [row.accuracy for row in shared], **accuracy))
    _spread(figure, drawn)
    baselines = [row for row in groups[0] if row.value is None]
    for row in baselines:
        right.axhline(row.accuracy.mean, color=INK, linewidth=0.7)
    values = [row.value for row in shared if row.value is not None]
    if min(values) > 0 and max(values) >= LOG_FROM * min(values):
        left.set_xscale("log")
        # matplotlib writes powers of ten as mathematics, which names with a dollar forbid.
        left.set_xticks(values, [f"{value:g}" for value in values])
        left.set_xticks([], minor=True)
    left.set_xlabel(_plain(axis))
    left.set_ylabel("RDLV")
    right.set_ylabel("accuracy")
    right.spines["right"].set_visible(True)
    right.grid(visible=False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    without = " Lines across: the run without it." if baselines else ""
    return Plot(
        figure,
        f"RDLV and accuracy against {axis}: mean and standard deviation. "
        f"The series lie a little aside of each other.{without}",
        _told(
            [row for group in groups for row in group],
            lambda row: (
                f"{axis} {row.value}, {_of_measure(row, 'rdlv')}, "
                f"accuracy {show(row.accuracy.mean)}"
            ),
        ),
    )


def _along(
    axes: Axes, rows: Sequence[Row], values: Sequence[Estimate], **style: Any
) -> ErrorbarContainer:
    return axes.errorbar(
        [math.nan if row.value is None else row.value for row in rows],
        _means(values),
        yerr=_deviations(values),
        **style,
        **_MEASURE_STYLE,
    )


def _spread(figure: Figure, drawn: Sequence[ErrorbarContainer]) -> None:
    """Set series with the same x side by side, so that no bar hides another's."""
    for number, series in enumerate(drawn):
        inches = _ASIDE * (number - (len(drawn) - 1) / 2) / _POINTS_PER_INCH
        aside = ScaledTranslation(inches, 0, figure.dpi_scale_trans)
        # When it is drawn already: the axes' limits are to be those of the numbers.
        for artist in series.get_children():
            artist.set_transform(artist.get_transform() + aside)


def _across(panel: Axes, value: Estimate, y: float, colour: str, marker: str) -> None:
    bar = _deviations([value])
    panel.errorbar(
        [value.mean], [y], xerr=bar, color=colour, marker=marker, linestyle="", **_MEASURE_STYLE
    )


def _two_panels(height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(14.0, height), layout="constrained")
    return figure, list(figure.subplots(1, len(LEAKAGE), sharey=True))


def _row_style(number: int) -> dict[str, Any]:
    """Each of 36 rows looks different: colours go round against the markers."""
    return {
        **series_style(number),
        "color": SERIES[(number + number // len(SERIES)) % len(SERIES)],
    }


def _means(values: Sequence[Estimate]) -> list[float]:
    return [value.mean for value in values]


def _deviations(values: Sequence[Estimate]) -> list[float]:
    return [0.0 if math.isnan(value.deviation) else value.deviation for value in values]


def _of_measure(row: Row, name: str) -> str:
    measured = row.measured[name]
    return f"{name} {show(measured.real.mean)} (control {show(measured.control.mean)})"


def _told(rows: Sequence[Row], tell: Callable[[Row], str]) -> str:
    return ". ".join(f"{row_name(row)}: {tell(row)}" for row in rows) + "."


def _plain(text: str) -> str:
    """Keep a legend from hiding a name that begins with an underscore."""
    return text.lstrip("_")
