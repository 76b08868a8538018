"""The cells of all seeds of one setting, taken together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .arms import SETTINGS
from .scoring import Evidence, pooled
from .statistics import Interval, mean, proportion, relative_error
from .store import CellResult

# Attackers who do not know the defence, and the ones who do.
NAIVE = ("naive",)
INFORMED = ("guess", "oracle", "updates", "adapted", "naive")


@dataclass(frozen=True)
class Leakage:
    """The worst that some attackers did, each figure by the attack that was best at it.

    Attributes:
        mse: least error, relative to the class mean's, at most 1.
        attack: whose that was.
        linkage: greatest share of victims that were linked.
        reidentified: greatest share whose picture is nearest to the true image.
        recovered: greatest mean recovered fraction.
        ssim: greatest mean similarity.
        accuracy: greatest share of pictures that the judge puts in the right class.
        victims: of the attack of ``mse``.
        chance: of being linked by guessing.
    """

    mse: Interval
    attack: str
    linkage: Interval
    reidentified: Interval
    recovered: float
    ssim: float
    accuracy: float
    victims: int
    chance: float


@dataclass(frozen=True)
class Point:
    """One setting of one arm on one set.

    Attributes:
        set, arm, setting: which.
        seeds: that it was run with.
        status: ``"ok"``, or why there is nothing.
        utility: mean balanced accuracy over the seeds.
        cost: undefended minus this one's balanced accuracy, by pairs of equal seeds; None without.
        gain: this one's minus that of training on public images alone, likewise.
        naive: leakage to attackers who do not know the defence; None where none was run.
        informed: leakage to all attackers.
        facts: of the first seed.
        membership: mean over the seeds.
    """

    set: str
    arm: str
    setting: str
    seeds: tuple[int, ...]
    status: str
    utility: float = float("nan")
    cost: Interval | None = None
    gain: Interval | None = None
    naive: Leakage | None = None
    informed: Leakage | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    membership: dict[str, float] = field(default_factory=dict)


def collect(results: Iterable[CellResult]) -> list[Point]:
    """Pool the seeds of each setting, in the order of the arms."""
    kept = list(results)
    utilities = {
        (r.key.set, r.key.arm, r.key.setting, r.key.seed): r.utility
        for r in kept
        if r.balanced_accuracy
    }
    groups: dict[tuple[str, str, str], list[CellResult]] = defaultdict(list)
    for result in kept:
        groups[result.key.set, result.key.arm, result.key.setting].append(result)
    order = {
        (arm, s): n for n, (arm, s) in enumerate((a, s) for a in SETTINGS for s in SETTINGS[a])
    }
    keys = sorted(groups, key=lambda key: (key[0], order.get((key[1], key[2]), len(order))))
    return [_point(key, groups[key], utilities) for key in keys]


def _point(
    key: tuple[str, str, str],
    cells: Sequence[CellResult],
    utilities: dict[tuple[str, str, str, int], float],
) -> Point:
    name, arm, setting = key
    good = [cell for cell in cells if cell.status == "ok"]
    seeds = tuple(cell.key.seed for cell in good)
    if not good:
        return Point(name, arm, setting, (), f"{cells[0].status}: {cells[0].reason}")
    membership = {
        what: sum(cell.membership[what] for cell in good) / len(good) for what in good[0].membership
    }
    if not good[0].balanced_accuracy:
        return Point(name, arm, setting, seeds, "ok", membership=membership)

    def paired(other: str, other_setting: str) -> Interval | None:
        differences = [
            cell.utility - utilities[name, other, other_setting, cell.key.seed]
            for cell in good
            if (name, other, other_setting, cell.key.seed) in utilities
        ]
        return mean(differences) if differences else None

    cost = paired("none", "batch")
    return Point(
        name,
        arm,
        setting,
        seeds,
        "ok",
        utility=sum(cell.utility for cell in good) / len(good),
        cost=None if cost is None else Interval(-cost.value, -cost.high, -cost.low),
        gain=paired("public-only", "-"),
        naive=_leakage(good, NAIVE),
        informed=_leakage(good, INFORMED),
        facts=good[0].facts,
        membership=membership,
    )


def _leakage(cells: Sequence[CellResult], attackers: Sequence[str]) -> Leakage | None:
    attacks: dict[str, list[Evidence]] = defaultdict(list)
    for cell in cells:
        for attacker in attackers:
            for attack, evidence in cell.leakage.get(attacker, {}).items():
                attacks[f"{attacker}: {attack}"].append(evidence)
    if not attacks:
        return None
    whole = {name: pooled(parts) for name, parts in attacks.items()}
    errors = {name: relative_error(evidence) for name, evidence in whole.items()}
    best = min(errors, key=lambda name: errors[name].value)
    every = whole.values()
    return Leakage(
        mse=_worst(errors.values(), min),
        attack=best,
        linkage=_worst([proportion(e.linked, e.victims) for e in every], max),
        reidentified=_worst([proportion(e.reidentified, e.victims) for e in every], max),
        recovered=max(e.recovered / e.victims for e in every),
        ssim=max(e.ssim / e.victims for e in every),
        accuracy=max(e.correct / e.victims for e in every),
        victims=whole[best].victims,
        chance=whole[best].chance / whole[best].victims,
    )


def _worst(intervals: Iterable[Interval], worst: Callable[[Iterable[float]], float]) -> Interval:
    """Return the worst estimate and the worst of each bound, which attack each comes from aside."""
    kept = list(intervals)
    return Interval(
        worst(item.value for item in kept),
        worst(item.low for item in kept),
        worst(item.high for item in kept),
    )
