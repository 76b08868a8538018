"""One plain sentence about each site: what was found over all rounds, and its limits."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gradward.report.effort import Effort, compare_effort, effort_of
from gradward.report.evidence import Evidence, Try, sum_up, tries_of, weigh
from gradward.report.records import CANARY, LIVE, LeakageRecord
from gradward.report.table import many, membership_unknown, show

LEAKS, PARTLY, NONE, UNKNOWN = LEVELS = ("leaks", "partly", "none", "unknown")
# A recovered fraction counts as seen if it is this far above a good guess and every control, and
# by as many standard deviations of the controls: the best of many tries is far out by luck alone.
VISIBLE: Final = 0.1
SCATTER: Final = 2.0
# What luck would bring about more often than once in twenty is not taken for a finding.
LUCK: Final = 0.05

WORDS: Final = {
    LEAKS: "Leaks",
    PARTLY: "Signs of a leak",
    NONE: "Not recovered",
    UNKNOWN: "Not known",
}
MEANINGS: Final = {
    LEAKS: "Images were recovered or told apart, and luck does not explain it. Do not go on like "
    "this: turn a defence on, or a stronger one.",
    PARTLY: "More than the controls show, but short of a recognised image, or resting on few "
    "images. Look at the rounds below and at the hospital's own pictures before going on.",
    NONE: "No more than the controls show. That holds for these attacks within this budget, and "
    "never means safe.",
    UNKNOWN: "No attack was scored, so nothing can be said. Find out why before relying on it.",
}


@dataclass(frozen=True)
class Verdict:
    """What to tell about one site.

    Attributes:
        site, subject: as in the records.
        level: one of :data:`LEVELS`.
        headline: the finding in a few words.
        figures: the figures that it rests on; with the headline they make one sentence.
        limits: what to bear in mind, a sentence each.
        evidence: of each attack that was scored.
        together: of several attacks counted together; None where there are not several.
        tries: all of them.
    """

    site: str
    subject: str
    level: str
    headline: str
    figures: str
    limits: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    together: Evidence | None
    tries: tuple[Try, ...]


def judge(records: Sequence[LeakageRecord], sites: Iterable[str] = ()) -> list[Verdict]:
    """Judge each site, the gravest first; live updates and canaries are never thrown together.

    Args:
        records: of a run.
        sites: that took part, so that one without any record is told as not known.
    """
    by_site: dict[tuple[str, str], list[LeakageRecord]] = defaultdict(list)
    for record in records:
        by_site[record.site, record.subject].append(record)
    for site in set(sites) - {record.site for record in records}:
        by_site[site, LIVE] = []
    efforts: dict[str, dict[str, Effort]] = defaultdict(dict)
    for (site, subject), own in by_site.items():
        if (effort := effort_of(own)) is not None:
            efforts[subject][site] = effort
    verdicts = [
        _judge_site(site, subject, own, compare_effort(site, efforts[subject]))
        for (site, subject), own in by_site.items()
    ]
    return sorted(verdicts, key=lambda v: (LEVELS.index(v.level), in_order(v.site), v.subject))


def in_order(site: str) -> list[tuple[int, str]]:
    """Return a key that sorts site-2 before site-10."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"([0-9]+)", site)]


def in_short(verdicts: Sequence[Verdict]) -> str:
    """Say how many sites there are of each level."""
    counts = Counter(verdict.level for verdict in verdicts)
    told = {
        LEAKS: f"{counts[LEAKS]} leak{'s' * (counts[LEAKS] == 1)}",
        PARTLY: f"{counts[PARTLY]} show{'s' * (counts[PARTLY] == 1)} signs of a leak",
        NONE: f"{counts[NONE]} show{'s' * (counts[NONE] == 1)} no more than the controls",
        UNKNOWN: f"of {counts[UNKNOWN]} nothing is known",
    }
    parts = [words for level, words in told.items() if counts[level]]
    return f"{many(len(verdicts), 'site')}: {', '.join(parts)}."


def one_line_each(verdicts: Sequence[Verdict]) -> list[str]:
    """Say of each site what was found, in a line that fits a terminal where its name does."""
    apart = len({verdict.subject for verdict in verdicts}) > 1
    names = [f"{v.site} ({v.subject})" if apart else v.site for v in verdicts]
    width = max(map(len, names), default=0)
    return [
        f"{name:{width}}  {_headed(found)}" for name, found in zip(names, verdicts, strict=True)
    ]


def _headed(found: Verdict) -> str:
    word, headline = WORDS[found.level], found.headline
    if headline.startswith(word):
        return headline
    return f"{word}: {headline[0].lower()}{headline[1:]}"


def _judge_site(
    site: str, subject: str, records: Sequence[LeakageRecord], effort: str | None
) -> Verdict:
    tries = tries_of(records)
    real = [record for record in records if not record.control]
    missing = Counter(record.status for record in real if record.status != "ok")
    if not tries:
        why = ", ".join(f"{status} {count}" for status, count in sorted(missing.items()))
        why = f"{why or 'no attack on record'}."
        return Verdict(site, subject, UNKNOWN, "Nothing was scored", why, (), (), None, ())
    evidence = weigh(tries)
    pooled = sum_up("all attacks", tries)
    share = _share_of_luck(evidence, pooled)
    level, proof = _level(evidence, pooled, share)
    return Verdict(
        site,
        subject,
        level,
        _headline(level, proof.recovered >= _bar(pooled)),
        _figures(proof, pooled, len(evidence)),
        tuple(_limits(level, proof, share, subject, tries, missing, len(real), effort)),
        tuple(evidence),
        pooled if len(evidence) > 1 else None,
        tuple(tries),
    )


def _share_of_luck(evidence: Sequence[Evidence], pooled: Evidence) -> float:
    """Return how unlikely one count has to be, so that all of a site together pass by luck rarely.

    They do so at no more than one site in twenty. A count that could not have come so low, whatever
    the attack had found, raises no false alarm and takes no share (Tarone, Biometrics 1990): the
    rounds of a short run, say.
    """
    least = [luck for e in evidence for luck in (e.least_luck, e.least_luck_of_rounds)]
    if len(evidence) > 1:
        least.append(pooled.least_luck)
    shares = 1
    while sum(luck < LUCK / shares for luck in least) > shares:
        shares += 1
    return LUCK / shares


def _level(evidence: Sequence[Evidence], pooled: Evidence, share: float) -> tuple[str, Evidence]:
    """Return the level and what it rests on: one attack, or all where no single one shows it."""
    # More attacks have more luck: the bar is above all their controls.
    bar = _bar(pooled)
    ranked = sorted(evidence, key=lambda e: (e.luck, -_or_least(e.recovered)))
    seen = [e for e in ranked if e.recovered >= bar]
    proofs: list[tuple[str, Iterable[Evidence]]] = [
        (LEAKS, (e for e in seen if e.told_apart)),
        (LEAKS, (e for e in ranked if e.luck_of_images < share)),
        (PARTLY, seen),
        (PARTLY, (e for e in ranked if e.luck < share or e.luck_of_rounds < share)),
        # Never the rounds of all attacks: what one update recovers more of, it does under each.
        (PARTLY, (e for e in (pooled,) if e.luck < share)),
    ]
    for level, candidates in proofs:
        for candidate in candidates:
            return level, candidate
    return NONE, pooled


def _bar(pooled: Evidence) -> float:
    """Return the recovered fraction from which on something counts as seen."""
    best = max(0.0, _or_least(pooled.control_recovered))
    return best + max(VISIBLE, SCATTER * pooled.control_scatter)


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _headline(level: str, seen: bool) -> str:
    return {
        (LEAKS, True): "Images can be recognised in what the server rebuilt",
        (LEAKS, False): "Rebuilt images can be told apart, though they look unlike the true ones",
        (PARTLY, True): "Images were recovered in part",
        (PARTLY, False): "More was found in the update than luck explains",
        (NONE, False): "Not recovered by these attacks within this budget",
    }[level, seen]


def _figures(found: Evidence, pooled: Evidence, attacks: int) -> str:
    who = many(attacks, "attack") if found is pooled else f"the attack {found.attack}"
    beside = "starting picture alone" if found.missing_controls == found.runs else "control"
    return (
        f"over {many(found.rounds, 'round')}, {who} {_way(found)} (control "
        f"{show(pooled.control_recovered)} at best) "
        f"and re-identified images in {found.hits} of {many(found.tries, 'try')} ({beside}: "
        f"{found.control_hits} of {found.control_tries}; blind guessing: about "
        f"{_few(found.by_chance)})."
    )


def _way(found: Evidence) -> str:
    if math.isnan(found.recovered):
        return "recovered an undefined fraction"
    if found.recovered <= 0:
        return f"got no nearer to an image than a good guess does, {show(found.recovered)} at best"
    return (
        f"got {show(found.recovered)} of the way from a good guess to the true image in round "
        f"{found.best_round}"
    )


def _limits(
    level: str,
    found: Evidence,
    share: float,
    subject: str,
    tries: Sequence[Try],
    missing: Counter[str],
    attempted: int,
    effort: str | None,
) -> list[str]:
    limits = []
    if found.images == 1:
        limits.append(
            "All tries are of one image, so that a hit, or many, can be luck: only what was "
            "recovered of the image can prove a leak here."
        )
    else:
        limits.append(
            f"The figures are means over the update's images (at least {found.images}): a single "
            "one may be worse off than the mean shows."
        )
    if level == NONE and found.hits > found.control_hits:
        limits.append(_within_luck(found.luck, share))
    without = sum(item.control is None for item in tries)
    if without:
        limits.append(
            f"{without} of {len(tries)} attacks had no control; the starting picture stands in."
        )
    scorer = "The server" if subject == CANARY else "The site"
    scored = f"{scorer} scored {len(tries)} of {attempted} attacks"
    told = ", ".join(f"{count} {status}" for status, count in sorted(missing.items()))
    limits.append(f"{scored} ({told})." if told else f"{scored}.")
    if effort is not None:
        limits.append(effort)
    if any(item.record.membership == "unknown" for item in tries):
        limits.append(membership_unknown())
    if subject == LIVE and level == NONE:
        limits.append("Attacks that were not tried, or a larger budget, may do better.")
    return limits


def _within_luck(luck: float, share: float) -> str:
    if luck >= LUCK:
        return "That the control had fewer hits is within what luck explains."
    # Down and up: equal figures would make nonsense of the sentence.
    return (
        "Luck alone gives an update so many more hits than its control at one site in "
        f"{math.floor(1 / luck)}. More than one count was tested here, so that only what it does "
        f"at less than one site in {math.ceil(1 / share)} is taken for a sign."
    )


def _few(expected: float) -> str:
    return f"{expected:.0f}" if expected >= 10 else f"{expected:.2g}"
