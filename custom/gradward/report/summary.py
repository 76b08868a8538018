"""The worst round of each site, with the best of all attacks on either side."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gradward.metrics.scores import Comparison, Scores, best_of_attacks
from gradward.report.records import LeakageRecord, RecordKey


@dataclass(frozen=True)
class SiteSummary:
    """What was found about one site.

    Attributes:
        site: its name.
        subject: which of its updates were attacked, see ``LeakageRecord``.
        attempted: attacks on record, controls not counted.
        scored: how many of them were scored.
        statuses: of those that were not.
        round: the round that gave away most; None where nothing was scored, as the next two.
        attack: the attack that recovered most in it.
        best: best of the attacks in it, for real update, control and prior alike.
        membership: whether the site knew which images made the update, as in the records.
    """

    site: str
    subject: str
    attempted: int
    scored: int
    statuses: tuple[str, ...]
    round: int | None = None
    attack: str | None = None
    best: Comparison | None = None
    membership: str | None = None


def summarise(records: Sequence[LeakageRecord]) -> list[SiteSummary]:
    """Summarise a run, site by site; live updates and canaries are never thrown together."""
    by_site: dict[tuple[str, str], list[LeakageRecord]] = defaultdict(list)
    for record in records:
        by_site[record.site, record.subject].append(record)
    return [_summarise_site(*key, own) for key, own in sorted(by_site.items())]


def best_by_round(records: Sequence[LeakageRecord]) -> dict[int, Comparison]:
    """Best of the scored attacks for each round of one site's records, of one subject and seed."""
    controls = {record.key: record for record in records if record.control}
    rounds: dict[int, list[LeakageRecord]] = defaultdict(list)
    for record in records:
        if record.status == "ok" and not record.control:
            rounds[record.round].append(record)
    return {
        number: best_of_attacks([_comparison(record, controls) for record in attacks])
        for number, attacks in rounds.items()
    }


def _summarise_site(site: str, subject: str, records: Sequence[LeakageRecord]) -> SiteSummary:
    real = [record for record in records if not record.control]
    scored = [record for record in real if record.status == "ok"]
    summary = SiteSummary(
        site=site,
        subject=subject,
        attempted=len(real),
        scored=len(scored),
        statuses=tuple(sorted({record.status for record in real} - {"ok"})),
    )
    best = best_by_round(records)
    if not best:
        return summary
    worst = max(best, key=lambda number: severity(best[number].real))
    attacks = [record for record in scored if record.round == worst]
    strongest = max(attacks, key=lambda record: severity(_scores(record)))
    return replace(
        summary,
        round=worst,
        attack=strongest.attack,
        best=best[worst],
        membership=strongest.membership,
    )


def _comparison(record: LeakageRecord, controls: Mapping[RecordKey, LeakageRecord]) -> Comparison:
    control = controls.get(replace(record, control=True).key)
    return Comparison(
        real=_scores(record),
        control=_scores(control) if control is not None and control.status == "ok" else None,
        prior=Scores.from_dict(record.prior),
    )


def _scores(record: LeakageRecord) -> Scores:
    return Scores.from_dict(record.scores())


def severity(scores: Scores) -> tuple[float, float]:
    """What the worst is told by: first re-identified, then recovered."""
    recovered = -math.inf if math.isnan(scores.recovered) else scores.recovered
    return scores.reid, recovered
