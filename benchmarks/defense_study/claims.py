"""The bars that the defence has to clear, each with its figures, reached or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .points import Leakage, Point
from .statistics import best_at_utility

MATCHED = 0.01
MSE_MARGIN = 1.124
ACCURACY_MARGIN = 1 - 0.125
_OURS = ("learned", "uniform", "class")
_MULTI_CLASS = ("mnist", "fashion")
_AGREEMENT = 0.1

Figure = Callable[[Point], float | None]


def verdicts(by_set: Mapping[str, Sequence[Point]]) -> list[str]:
    """Return a section of lines, "reached" or "not reached" with figures, for each claim.

    A bar on the MSE counts our lower bound against the baseline's estimate, at a utility that the
    baseline may undercut by one point. Each baseline's range begins at no defence.
    """
    claims = {
        "Against attackers who do not know the defence, MSE at least 12.4 % above DP-SGD and BiDO":
            lambda name, points: _mse_lines(points, ("learned",), ("dp-sgd", "bido"), naive=True),
        "In class-hiding mode, attacker accuracy at least 12.5 % below DP-SGD and BiDO":
            lambda name, points: _accuracy_lines(points) if name in _MULTI_CLASS else [],
        "Against the oracle, MSE at least 12.4 % above input noise, update noise and pruning":
            lambda name, points: _mse_lines(
                points,
                _OURS,
                ("input-noise", "erasing", "update-noise", "pruning", "dual-pruning"),
                naive=False,
            ),
        "Linkage and cost": _linkage_lines,
        "At epsilon 8, half of what the undefended federation gains, and better than DP-SGD":
            lambda name, points: _certified_lines(points),
        "Learned gates against uniform gates and draws of the class, linkage at matched utility":
            lambda name, points: _gate_lines(points),
        "A fresh adversary agrees with what the acceptance gate reported":
            lambda name, points: _agreement_lines(points),
    }  # fmt: skip
    sections = []
    for title, lines in claims.items():
        found = [f"- {name}: {line}" for name, own in by_set.items() for line in lines(name, own)]
        sections += [f"## {title}", "\n".join(found) if found else "No figures."]
    return sections


def _verdict(reached: bool, figures: str) -> str:
    return f"**{'reached' if reached else 'not reached'}**: {figures}"


def _of(points: Sequence[Point], *arms: str) -> list[Point]:
    return [p for p in points if p.arm in arms and p.status == "ok" and p.informed is not None]


def _best_baseline(
    points: Sequence[Point], arms: Sequence[str], figure: Figure, least: float
) -> tuple[str, float] | None:
    """Return the arm with the highest figure at this utility, interpolated over its range."""
    found = {}
    for arm in arms:
        own = _of(points, arm)
        curve = [
            (point.utility, value)
            for point in (_of(points, "none") + own if own else [])
            if (value := figure(point)) is not None
        ]
        value = best_at_utility(curve, least)
        if value is not None:
            found[arm] = value
    if not found:
        return None
    best = max(found, key=found.__getitem__)
    return best, found[best]


def _mse_lines(
    points: Sequence[Point], ours: Sequence[str], baselines: Sequence[str], naive: bool
) -> list[str]:
    def leakage(point: Point) -> Leakage | None:
        return point.naive if naive else point.informed

    def mse(point: Point) -> float | None:
        found = leakage(point)
        return None if found is None else found.mse.value

    lines = []
    for point in _of(points, *ours):
        own, best = leakage(point), _best_baseline(points, baselines, mse, point.utility - MATCHED)
        if own is None or best is None:
            continue
        arm, value = best
        figures = (
            f"{point.arm} {point.setting} at utility {point.utility:.3f}: {own.mse.value:.3f} "
            f"(≥ {own.mse.low:.3f}) against {value:.3f} of {arm}"
        )
        if MSE_MARGIN * value > 1:
            figures += "; out of reach, the class mean's error is the most there is"
        lines.append(_verdict(own.mse.low >= MSE_MARGIN * value, figures))
    return lines


def _accuracy_lines(points: Sequence[Point]) -> list[str]:
    def hidden(point: Point) -> float | None:
        return None if point.naive is None else -point.naive.accuracy

    lines = []
    for point in _of(points, "class-hiding"):
        best = _best_baseline(points, ("dp-sgd", "bido"), hidden, point.utility - MATCHED)
        if point.naive is None or best is None:
            continue
        arm, value = best[0], -best[1]
        own = point.naive.accuracy
        lines.append(
            _verdict(
                own <= ACCURACY_MARGIN * value,
                f"rate {point.setting} at utility {point.utility:.3f}: {own:.3f} against "
                f"{value:.3f} of {arm}",
            )
        )
    return lines


def _linkage_lines(name: str, points: Sequence[Point]) -> list[str]:
    limits = {"pneumonia": (0.1, 0.95, 0.02), "mnist": (0.35, 0.0, 0.05)}
    if name not in limits:
        return []
    linkage, mse, cost = limits[name]
    lines = []
    for point in _of(points, *_OURS):
        if point.informed is None or point.cost is None:
            continue
        own = point.informed
        lines.append(
            _verdict(
                own.linkage.high <= linkage and own.mse.low >= mse and point.cost.high <= cost,
                f"{point.arm} {point.setting}: linkage at most {own.linkage.high:.3f} (allowed "
                f"{linkage}), MSE at least {own.mse.low:.3f} ({mse}), cost at most "
                f"{point.cost.high:.3f} ({cost}; mean {point.cost.value:.3f})",
            )
        )
    return lines


def _certified_lines(points: Sequence[Point]) -> list[str]:
    gains = {
        (p.arm, p.setting): p.gain.value for p in points if p.status == "ok" and p.gain is not None
    }
    whole = gains.get(("none", "batch"))
    if whole is None:
        return []
    private = {arm: gains.get(key) for arm, key in _EPSILON_8.items()}
    known = {arm: value for arm, value in private.items() if value is not None}
    return [
        _verdict(
            value >= whole / 2 and value == max(known.values()),
            f"{arm} gains {value:+.3f} over public-only, undefended {whole:+.3f}"
            + "".join(f", {other} {gain:+.3f}" for other, gain in known.items() if other != arm),
        )
        for arm, value in known.items()
    ]


_EPSILON_8 = {"dp-class": ("dp-class", "8"), "dp-sgd": ("dp-sgd", "eps=8")}


def _gate_lines(points: Sequence[Point]) -> list[str]:
    def unlinked(point: Point) -> float | None:
        return None if point.informed is None else -point.informed.linkage.value

    lines = []
    for point in _of(points, "learned"):
        best = _best_baseline(points, ("uniform", "class"), unlinked, point.utility - MATCHED)
        if point.informed is None or best is None:
            continue
        arm, value = best[0], -best[1]
        own = point.informed.linkage.value
        lines.append(
            _verdict(
                own < value,
                f"rate {point.setting} at utility {point.utility:.3f}: {own:.3f} against "
                f"{value:.3f} of {arm}",
            )
        )
    return lines


def _agreement_lines(points: Sequence[Point]) -> list[str]:
    lines = []
    for point in _of(points, "learned", "uniform", "class-hiding"):
        reported = point.facts.get("acceptance")
        if reported is None or point.informed is None:
            continue
        own = point.informed
        # Only what flatters is wrong: less linkage or more error than a fresh attacker finds.
        agrees = (
            own.linkage.low <= reported["linkage"] + _AGREEMENT
            and own.mse.high >= reported["relative_mse"] - _AGREEMENT
        )
        lines.append(
            _verdict(
                agrees,
                f"{point.arm} {point.setting}: linkage {own.linkage.value:.3f}, reported "
                f"{reported['linkage']:.3f}; MSE {own.mse.value:.3f}, reported "
                f"{reported['relative_mse']:.3f}",
            )
        )
    return lines
