"""The worst round of each site, with the best of all attacks on either side."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from gradward.metrics.scores import Comparison, Scores, best_of_attacks
from gradward.report.records import LeakageRecord


@dataclass(frozen=True)
class SiteSummary:
    """What was found about one site.

    Attributes:
        site: its name.
        attempted: attacks on record, controls not counted.
        scored: how many of them the site scored.
        statuses: of those it did not score.
        round: the round that gave away most; None where nothing was scored, as the next two.
        attack: the attack that recovered most in it.
        best: best of the attacks in it, for real update, control and prior alike.
        membership: whether the site knew which images made the update, as in the records.
    """

    site: str
    attempted: int
    scored: int
    statuses: tuple[str, ...]
    round: int | None = None
    attack: str | None = None
    best: Comparison | None = None
    membership: str | None = None


def summarise(records: Sequence[LeakageRecord]) -> list[SiteSummary]:
    """Summarise a run, site by site."""
    by_site: dict[str, list[LeakageRecord]] = defaultdict(list)
    for record in records:
        by_site[record.site].append(record)
    return [_summarise_site(site, own) for site, own in sorted(by_site.items())]


def _summarise_site(site: str, records: Sequence[LeakageRecord]) -> SiteSummary:
    real = [record for record in records if not record.control]
    scored = [record for record in real if record.status == "ok"]
    controls = {record.key: record for record in records if record.control}
    summary = SiteSummary(
        site=site,
        attempted=len(real),
        scored=len(scored),
        statuses=tuple(sorted({record.status for record in real} - {"ok"})),
    )
    rounds: dict[int, list[LeakageRecord]] = defaultdict(list)
    for record in scored:
        rounds[record.round].append(record)
    if not rounds:
        return summary
    best = {
        number: best_of_attacks([_comparison(record, controls) for record in attacks])
        for number, attacks in rounds.items()
    }
    worst = max(best, key=lambda number: _severity(best[number].real))
    strongest = max(rounds[worst], key=lambda record: _severity(_scores(record)))
    return replace(
        summary,
        round=worst,
        attack=strongest.attack,
        best=best[worst],
        membership=strongest.membership,
    )


def _comparison(
    record: LeakageRecord, controls: dict[tuple[str, int, str, bool, int], LeakageRecord]
) -> Comparison:
    site, number, attack, _, seed = record.key
    control = controls.get((site, number, attack, True, seed))
    return Comparison(
        real=_scores(record),
        control=_scores(control) if control is not None and control.status == "ok" else None,
        prior=Scores.from_dict(record.prior),
    )


def _scores(record: LeakageRecord) -> Scores:
    return Scores.from_dict({item.name: getattr(record, item.name) for item in fields(Scores)})


def _severity(scores: Scores) -> tuple[float, float]:
    recovered = -math.inf if math.isnan(scores.recovered) else scores.recovered
    return scores.reid, recovered
