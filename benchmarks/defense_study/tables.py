"""Figures as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .points import Point
from .statistics import Interval

_HEADINGS = (
    "arm", "setting", "seeds", "balanced accuracy", "cost", "gain over public-only", "MSE / prior",
    "linkage", "re-ID", "recovered", "SSIM", "naive MSE / prior",
    "naive accuracy", "naive victims", "rate", "best attack", "victims", "seconds",
)  # fmt: skip


def table(points: Sequence[Point]) -> str:
    """Return one row a setting, then what was refused or failed and the membership audits.

    MSE comes with its lower, linkage and re-identification with their upper 95 % bound, cost and
    gain with both; each bound holds by itself. "Naive" attackers know neither defence nor label:
    the judge's accuracy says something of their pictures alone.
    """
    rows = [_row(point) for point in points if point.informed is not None]
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|" + "---|" * len(_HEADINGS)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    notes = [
        f"- {point.arm} {point.setting}: {point.status}" for point in points if point.status != "ok"
    ]
    notes += [
        f"- {point.arm} {point.setting}: AUC "
        + ", ".join(
            f"{what} {value:.2f} (at most {point.membership[f'{what} upper']:.2f})"
            for what, value in point.membership.items()
            if not what.endswith(" upper")
        )
        for point in points
        if point.membership
    ]
    return "\n".join(lines + (["", *notes] if notes else []))


def _row(point: Point) -> list[str]:
    leakage, naive = point.informed, point.naive
    assert leakage is not None  # the caller's condition
    rate = point.facts.get("rate")
    return [
        point.arm,
        point.setting,
        str(len(point.seeds)),
        f"{point.utility:.3f}",
        _signed(point.cost),
        _signed(point.gain),
        leakage.mse.at_least,
        f"{leakage.linkage.value:.3f} (≤ {leakage.linkage.high:.3f}; chance {leakage.chance:.3f})",
        leakage.reidentified.at_most,
        f"{leakage.recovered:.2f}",
        f"{leakage.ssim:.2f}",
        "" if naive is None else naive.mse.at_least,
        "" if naive is None else naive.accuracy.at_most,
        "" if naive is None else str(naive.victims),
        "" if rate is None else f"{rate:.1f}",
        leakage.attack,
        str(leakage.victims),
        f"{point.seconds:.0f}",
    ]


def _signed(interval: Interval | None) -> str:
    if interval is None:
        return ""
    # Adding 0 turns -0.0 into 0.0.
    value = round(interval.value, 3) + 0.0
    if math.isinf(interval.low):
        return f"{value:+.3f}"
    return f"{value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
