"""The figures of the leakage report."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradward.metrics.proportion import wilson_interval
from gradward.report.evidence import Try
from gradward.report.plots import (
    CONTROL,
    INK,
    REAL,
    new_figure,
    numbers,
    rounds_axis,
    to_svg,
)
from gradward.report.run_folder import ScalarRecord

ACCURACY = "valid/accuracy"
WIDTH = 344
# More would only be a smear.
_MOST_POINTS, _MOST_MARKERS = 60, 16
# Both bounds of `wilson_interval` together: 95 %.
_EACH_BOUND = 0.975

_Values = Sequence[float | None]


def lowest(tries: Sequence[Try]) -> float:
    """Return where the axes of recovered fractions begin, the same for all sites of a page."""
    return _axis_begin(
        value for item in tries for value in (item.real.recovered, item.beside.recovered)
    )


def scale(site: str, tries: Sequence[Try], left: float) -> Markup:
    """Draw all recovered fractions of a site beside those of its controls, on one scale.

    Args:
        site: its name.
        tries: of all rounds and attacks.
        left: where the scale begins; what lies below is drawn there.
    """
    figure, (axis,) = new_figure(WIDTH, 104)
    rows = (
        ("update", [item.real.recovered for item in tries], REAL, "o"),
        ("control", [item.control.recovered for item in tries if item.control], CONTROL, "s"),
    )
    told = []
    for height, (name, found, colour, marker) in zip((1, 0), rows, strict=True):
        values = sorted(max(value, left) for value in found if not math.isnan(value))
        told.append(f"{name}: {numbers(values)}")
        if len(values) > _MOST_POINTS:
            _box(axis, values, height, colour)
        else:
            face = colour if marker == "o" else "none"
            dots = axis.plot(values, [height] * len(values), marker, color=colour, markersize=6)
            dots[0].set_markerfacecolor(face)
    for place in (0, 1):
        axis.axvline(place, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
    axis.set(xlim=(left - 0.04, 1.06), ylim=(-0.6, 1.6))
    axis.set_yticks([0, 1], ["control", "update"])
    axis.set_xticks([left, 0, 1], [f"{left:g}", "0 good guess", "1 true image"])
    axis.get_xticklabels()[0].set_horizontalalignment("left")
    axis.get_xticklabels()[-1].set_horizontalalignment("right")
    axis.grid(visible=False)
    axis.spines["left"].set_visible(False)
    figure.subplots_adjust(left=58 / WIDTH, bottom=26 / 104, top=0.98)
    return to_svg(
        figure,
        f"{site}: recovered fraction in every round and attack, 0 a good guess and 1 the true "
        f"image. {'. '.join(told)}.",
    )


def distribution(real: Sequence[float], control: Sequence[float], recovered_from: float) -> Markup:
    """Draw how many images were recovered how far, beside the control.

    Args:
        real: the most that was recovered of each image.
        control: the same from the control.
        recovered_from: the fraction from which on an image counts as recovered.
    """
    left = _axis_begin([*real, *control])
    bins = round((1 - left) * 10)
    figure, (axis,) = new_figure(WIDTH, 190)
    for values, aside, colour, face in (
        (real, 0.027, REAL, REAL),
        (control, 0.073, CONTROL, "none"),
    ):
        # Tenths are not exact as binary numbers; the last bin holds 1 as well.
        places = (min(int((max(v, left) - left) * 10 + 1e-9), bins - 1) for v in values)
        for place, count in Counter(places).items():
            middle = left + place / 10 + aside
            axis.bar(middle, count, 0.04, facecolor=face, edgecolor=colour, linewidth=1.4)
    axis.axvline(0, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
    axis.set_xlim(left - 0.02, 1.02)
    ticks = {left: f"{left:g}", 0: "0 good guess", recovered_from: "", 1: "1 true image"}
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.get_xticklabels()[0].set_horizontalalignment("left")
    axis.get_xticklabels()[-1].set_horizontalalignment("right")
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    axis.set_ylabel("images")
    return to_svg(
        figure,
        f"The most that was recovered of each image. Update: {numbers(real)}; control: "
        f"{numbers(control)}.",
    )


def course(site: str, attack: str, tries: Sequence[Try], rounds: range, left: float) -> Markup:
    """Draw one attack on one site over the rounds: re-identified above, recovered below.

    Args:
        site, attack: their names.
        tries: of that attack on that site, one a round.
        rounds: of the whole run, so that panels line up.
        left: where the axis of recovered fractions begins.
    """
    by_round = {item.record.round: item for item in tries}
    there = [by_round.get(number) for number in rounds]
    figure, (above, below) = new_figure(WIDTH, 264, rows=2)
    reid = [_finite(item.real.reid if item else None) for item in there]
    reid_control = [_finite(item.beside.reid if item else None) for item in there]
    bounds = [
        None if share is None or item is None else wilson_interval(share, item.images, _EACH_BOUND)
        for share, item in zip(reid, there, strict=True)
    ]
    _band(above, rounds, [b and b[0] for b in bounds], [b and b[1] for b in bounds], REAL)
    _two_lines(above, rounds, reid, reid_control)
    above.set(ylim=(-0.04, 1.04), yticks=(0, 0.5, 1))
    above.set_title("re-identified, share of the images", loc="left", fontsize=11.5, pad=4)
    recovered = [_finite(item.real.recovered if item else None, left) for item in there]
    control = [_finite(item.beside.recovered if item else None, left) for item in there]
    present = [value for value in control if value is not None]
    if present:
        below.axhspan(min(present), max(present), color=CONTROL, alpha=0.14, linewidth=0)
    below.axhline(0, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
    _two_lines(below, rounds, recovered, control)
    below.set(ylim=(left - 0.06, 1.06), yticks=[left, 0, 0.5, 1])
    below.set_title("recovered, 0 good guess to 1 true image", loc="left", fontsize=11.5, pad=4)
    rounds_axis(below, rounds)
    figure.subplots_adjust(top=1 - 22 / 264, hspace=0.36)
    return to_svg(
        figure,
        f"{site}, attack {attack}, round by round. Re-identified: {numbers(reid)}; control: "
        f"{numbers(reid_control)}. Recovered: {numbers(recovered)}; control: {numbers(control)}.",
    )


def accuracy_course(scalars: Sequence[ScalarRecord], rounds: range) -> Markup | None:
    """Draw the validation accuracy over the rounds, median and range of the sites."""
    found: dict[int, list[float]] = defaultdict(list)
    for scalar in scalars:
        if scalar.tag == ACCURACY and scalar.step in rounds:
            found[scalar.step].append(scalar.value)
    if not found:
        return None
    low, middle, high = (
        [pick(found[number]) if number in found else None for number in rounds]
        for pick in (min, median, max)
    )
    figure, (axis,) = new_figure(WIDTH, 190)
    _band(axis, rounds, low, high, REAL)
    axis.plot(rounds, _gaps(middle), color=REAL, **_marker(rounds, "o"))
    axis.set(ylim=(-0.04, 1.04), yticks=(0, 0.5, 1))
    rounds_axis(axis, rounds)
    return to_svg(
        figure,
        f"Validation accuracy by round, median of the sites: {numbers(middle)}; lowest site: "
        f"{numbers(low)}; highest site: {numbers(high)}.",
    )


def worst_course(tries: Sequence[Try], rounds: range, left: float) -> Markup:
    """Draw the recovered fraction over the rounds, best attack of each, range of the sites."""
    real, control = (defaultdict[int, dict[str, float]](dict) for _ in range(2))
    for item in tries:
        number, site = item.record.round, item.record.site
        for scores, kept in ((item.real, real), (item.beside, control)):
            value = _finite(scores.recovered, left)
            if value is not None:
                kept[number][site] = max(value, kept[number].get(site, -math.inf))
    figure, (axis,) = new_figure(WIDTH, 190)
    least: _Values = [min(real[number].values()) if real.get(number) else None for number in rounds]
    worst: _Values = [max(real[number].values()) if real.get(number) else None for number in rounds]
    bar: _Values = [max(control[n].values()) if control.get(n) else None for n in rounds]
    _band(axis, rounds, least, worst, REAL)
    axis.plot(rounds, _gaps(worst), color=REAL, **_marker(rounds, "o"))
    axis.plot(rounds, _gaps(bar), color=CONTROL, linestyle=(0, (4, 2)), **_marker(rounds, "s"))
    axis.axhline(0, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
    axis.set(ylim=(left - 0.06, 1.06), yticks=[left, 0, 0.5, 1])
    rounds_axis(axis, rounds)
    return to_svg(
        figure,
        f"Recovered fraction by round, best attack of each site. Worst site: {numbers(worst)}; "
        f"best site: {numbers(least)}; highest control: {numbers(bar)}.",
    )


def _axis_begin(values: Iterable[float]) -> float:
    """Return a half at or below the least value, -1 at least and -0.5 at most."""
    least = min((value for value in values if not math.isnan(value)), default=0.0)
    return max(-1.0, math.floor(min(least, -0.5) * 2) / 2)


def _two_lines(axis: Axes, rounds: range, real: _Values, control: _Values) -> None:
    dashes = (0, (4, 2))
    axis.plot(rounds, _gaps(control), color=CONTROL, linestyle=dashes, **_marker(rounds, "s"))
    axis.plot(rounds, _gaps(real), color=REAL, **_marker(rounds, "o"))


def _band(axis: Axes, rounds: range, low: _Values, high: _Values, colour: str) -> None:
    if len(rounds) > 1:
        axis.fill_between(rounds, _gaps(low), _gaps(high), color=colour, alpha=0.14, linewidth=0)
    else:
        axis.vlines(rounds, _gaps(low), _gaps(high), color=colour, alpha=0.3, linewidth=8)


def _box(axis: Axes, values: Sequence[float], height: float, colour: str) -> None:
    """Draw the range as a thin line, the middle half as a thick one, and the median."""
    quarter = len(values) // 4
    axis.hlines(height, values[0], values[-1], color=colour, linewidth=1.5)
    axis.hlines(height, values[quarter], values[-1 - quarter], color=colour, linewidth=7, alpha=0.5)
    axis.plot([median(values)], [height], color=colour, marker="|", markersize=14)


def _marker(rounds: range, shape: str) -> dict[str, Any]:
    if len(rounds) > _MOST_MARKERS:
        return {}
    return {"marker": shape} | ({"markerfacecolor": "none"} if shape == "s" else {})


def _finite(value: float | None, least: float = -math.inf) -> float | None:
    return None if value is None or math.isnan(value) else max(value, least)


def _gaps(values: _Values) -> list[float]:
    return [math.nan if value is None else value for value in values]
