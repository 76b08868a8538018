"""The cells of all seeds of one setting, taken together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .arms import CERTIFIED, FRONTIER, settings_of
from .scoring import Evidence, pooled
from .statistics import Interval, mean, proportion, relative_error
from .store import CellResult

# Attackers who do not know the defence; and whoever there is.
NAIVE = ("naive",)
_PUBLIC = ("public-only", "-")
EVERYONE = ("guess", "oracle", "updates", "adapted", "naive")


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
    accuracy: Interval
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
        gain: this one's minus that of the public images alone, likewise.
        naive: leakage to attackers who do not know the defence; None where none was run.
        informed: leakage to whoever knows most.
        facts: of the first seed; of the acceptance, its mean figures over the seeds.
        membership: mean over the seeds.
        seconds: mean wall clock of a seed.
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
    seconds: float = 0.0


def collect(results: Iterable[CellResult]) -> list[Point]:
    """Pool the seeds of each setting, in the order of the arms."""
    kept = list(results)
    utilities = {
        (r.key.set, r.key.arm, r.key.setting, r.key.seed): r.utility
        for r in kept
        if r.balanced_accuracy
    }
    utilities |= _public_only(kept)
    groups: dict[tuple[str, str, str], list[CellResult]] = defaultdict(list)
    for result in kept:
        groups[result.key.set, result.key.arm, result.key.setting].append(result)
    known = [*settings_of(FRONTIER).items(), *settings_of(CERTIFIED).items()]
    pairs = dict.fromkeys((arm, setting) for arm, own in known for setting in own)
    order = {pair: number for number, pair in enumerate(pairs)}
    keys = sorted(groups, key=lambda key: (key[0], order.get((key[1], key[2]), len(order))))
    return [_point(key, groups[key], utilities) for key in keys]


def _public_only(
    results: Iterable[CellResult],
) -> dict[tuple[str, str, str, int], float]:
    """Return what the public images alone come to: before or after further training on them.

    Whichever is better on average over the seeds of a set: where the public part is small, training
    on it for as long as a federation takes does harm, and a yardstick should not profit from that.
    """
    found: dict[tuple[str, str, str, int], float] = {}
    cells = [r for r in results if r.key.arm == _PUBLIC[0] and r.balanced_accuracy]
    for name in {cell.key.set for cell in cells}:
        own = [cell for cell in cells if cell.key.set == name]
        before, after = [cell.balanced_accuracy[0] for cell in own], [cell.utility for cell in own]
        better = before if sum(before) > sum(after) else after
        found |= {(name, *_PUBLIC, cell.key.seed): u for cell, u in zip(own, better, strict=True)}
    return found


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
            utilities[name, arm, setting, seed] - utilities[name, other, other_setting, seed]
            for seed in seeds
            if (name, other, other_setting, seed) in utilities
        ]
        return mean(differences) if differences else None

    cost = paired("none", "batch")
    return Point(
        name,
        arm,
        setting,
        seeds,
        "ok",
        utility=sum(utilities[name, arm, setting, seed] for seed in seeds) / len(seeds),
        cost=None if cost is None else Interval(-cost.value, -cost.high, -cost.low),
        gain=paired(*_PUBLIC),
        naive=_leakage(good, NAIVE, of_all=True),
        informed=_leakage(good, _informed(good)),
        facts=_facts(good),
        membership=membership,
        seconds=sum(cell.seconds for cell in good) / len(good),
    )


def _facts(cells: Sequence[CellResult]) -> dict[str, Any]:
    """Return the first cell's facts, the acceptance gate's figures averaged over the cells."""
    facts = dict(cells[0].facts)
    reports = [cell.facts["acceptance"] for cell in cells if "acceptance" in cell.facts]
    if reports:
        facts["acceptance"] = {
            name: sum(report[name] for report in reports) / len(reports)
            for name in ("linkage", "gallery", "relative_mse")
        }
    return facts


def _informed(cells: Sequence[CellResult]) -> Sequence[str]:
    """Return the attackers whose worst counts.

    Where the oracle holds what a site trained on, an update can tell no more (data processing), and
    a chance hit among the few victims of a naive inversion is none of the defence's doing.
    """
    held = any("oracle" in cell.leakage for cell in cells)
    return [name for name in EVERYONE if not (held and name in NAIVE)]


def _leakage(
    cells: Sequence[CellResult], attackers: Sequence[str], *, of_all: bool = False
) -> Leakage | None:
    """Pool the seeds of each attack; with ``of_all`` those alone that attacked the most victims."""
    attacks: dict[str, list[Evidence]] = defaultdict(list)
    for cell in cells:
        for attacker in attackers:
            for attack, evidence in cell.leakage.get(attacker, {}).items():
                attacks[f"{attacker}: {attack}"].append(evidence)
    if not attacks:
        return None
    whole = {name: pooled(parts) for name, parts in attacks.items()}
    if of_all:
        most = max(evidence.victims for evidence in whole.values())
        whole = {name: e for name, e in whole.items() if e.victims > most / 2}
    errors = {name: relative_error(evidence) for name, evidence in whole.items()}
    best = min(errors, key=lambda name: errors[name].value)
    every = whole.values()
    return Leakage(
        mse=errors[best],
        attack=best,
        linkage=_greatest([proportion(e.linked, e.victims) for e in every]),
        reidentified=_greatest([proportion(e.reidentified, e.victims) for e in every]),
        recovered=max(e.recovered / e.victims for e in every),
        ssim=max(e.ssim / e.victims for e in every),
        accuracy=_greatest([proportion(e.correct, e.victims) for e in every]),
        victims=whole[best].victims,
        chance=whole[best].chance / whole[best].victims,
    )


def _greatest(intervals: Iterable[Interval]) -> Interval:
    """Return the worst attack's own bounds.

    Not the worst bound of all: an attack on few victims that found nothing has wide bounds, which
    are no sign of a leak. Where two found equally much, the wider bounds count.
    """
    return max(intervals, key=lambda item: (item.value, item.high))
