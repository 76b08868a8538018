"""What was attacked and what not, and what the attacks were told."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from gradward.report.effort import Effort, effort_of
from gradward.report.records import STATUSES, LeakageRecord
from gradward.report.run_folder import Run
from gradward.report.verdict import in_order

STATUS_MEANINGS = {
    "ok": "scored",
    "failed": "the attack broke off, or the update could not be used",
    "skipped": "the attack does not apply to such an update",
    "refused": "the site would not score it",
    "unscored": "the site did not answer",
    "absent": "the site sent no update",
}


@dataclass(frozen=True)
class SiteCoverage:
    """How many attacks on a site, controls not counted, came to what.

    Attributes:
        site: its name.
        rounds: in which something was attacked or should have been.
        updates: that the server accepted from it; None where the run did not write that down.
        effort: of the attacks that were scored; None where the records do not say.
        counts: attacks by status, in the order of ``STATUSES``.
    """

    site: str
    rounds: int
    updates: int | None
    effort: Effort | None
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Gap:
    """Attacks without a score, with one reason in common."""

    status: str
    reason: str
    attacks: int
    where: str


def coverage_of(run: Run) -> list[SiteCoverage]:
    """Count the attacks site by site; sites that took part without any record are there too."""
    by_site: dict[str, list[LeakageRecord]] = {site: [] for site in sites_of(run)}
    for record in run.records:
        if not record.control:
            by_site[record.site].append(record)
    updates = Counter(update.site for update in run.updates)
    found = []
    for site, records in by_site.items():
        statuses = Counter(record.status for record in records)
        found.append(
            SiteCoverage(
                site,
                len({record.round for record in records}),
                updates[site] if run.updates else None,
                effort_of(records),
                tuple(statuses[status] for status in STATUSES),
            )
        )
    return found


def gaps_of(records: Sequence[LeakageRecord]) -> list[Gap]:
    """Group the attacks that were not scored by why, the most frequent first."""
    groups: dict[tuple[str, str], list[LeakageRecord]] = defaultdict(list)
    for record in records:
        if record.status != "ok" and not record.control:
            groups[record.status, record.reason].append(record)
    gaps = [Gap(*key, len(own), _where(own)) for key, own in groups.items()]
    return sorted(gaps, key=lambda gap: (-gap.attacks, gap.status, gap.reason))


def sites_of(run: Run) -> list[str]:
    """Name all sites that the run knows of, site-2 before site-10."""
    asked = run.configuration.sites if run.configuration else ()
    return sorted({*asked, *(record.site for record in run.records)}, key=in_order)


def audited_sites(run: Run) -> list[str]:
    """Name the sites that the job attacked: those that it says, else all of them."""
    asked = run.configuration.audit.get("sites") if run.configuration else None
    return list(asked or sites_of(run))


def knowledge_of(records: Sequence[LeakageRecord]) -> dict[str, dict[str, str]]:
    """Say for each attack and fact whether it was given, inferred or lacked.

    Where updates differed, all words stand beside each other.
    """
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        for fact, source in record.knowledge.items():
            found[record.attack][fact].add(source)
    facts = list(dict.fromkeys(fact for told in found.values() for fact in told))
    return {
        attack: {fact: " or ".join(sorted(told.get(fact, ()))) or "not stated" for fact in facts}
        for attack, told in sorted(found.items())
    }


def _where(records: Sequence[LeakageRecord]) -> str:
    sites = sorted({record.site for record in records}, key=in_order)
    named = ", ".join(sites) if len(sites) <= 4 else f"{len(sites)} sites"
    return f"{named}; {_spans(sorted({record.round for record in records}))}"


def _spans(rounds: Sequence[int]) -> str:
    """Write rounds shortly: 0 to 3, 5."""
    spans: list[list[int]] = []
    for number in rounds:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    told = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans)
    return f"{'round' if len(rounds) == 1 else 'rounds'} {told}"
