"""What all rounds together say about one attack on one site, and how far luck could explain it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import pstdev

from scipy.stats import binomtest, fisher_exact

from gradward.metrics.scores import Scores
from gradward.report.records import LeakageRecord


@dataclass(frozen=True)
class Try:
    """One attack in one round, scored.

    Attributes:
        record: of the real update.
        real, prior: its scores and those of the picture that it started from.
        control: of the same attack on the wrong update; None where that was not scored.
    """

    record: LeakageRecord
    real: Scores
    control: Scores | None
    prior: Scores

    @property
    def beside(self) -> Scores:
        """What the real scores have to exceed: without a control the prior's stand in."""
        return self.control or self.prior

    @property
    def images(self) -> int:
        """Pictures that were matched and scored; an update may hold more images or fewer."""
        matched = self.prior.n_images
        return int(self.real.n_images if math.isnan(matched) else matched)


@dataclass(frozen=True)
class Evidence:
    """Counts over the rounds. A *try* is one image in one round under one attack.

    Attributes:
        attack: its name; several where attacks are pooled.
        rounds: that were scored.
        runs: of an attack on an update that were scored.
        images: in the round that had fewest.
        tries, hits: images sought in the gallery, and re-identified.
        control_tries, control_hits: the same of the controls, or of the prior in their stead.
        prior_hits: re-identified by the starting picture alone, out of ``tries``.
        by_chance: hits that blind guessing would have, one in the gallery's size for each try.
        recovered: the most of all rounds, in round ``best_round``; nan where undefined.
        control_recovered: the most of all rounds' controls.
        control_scatter: standard deviation of what the controls recovered; 0 for a single one.
        missing_controls: runs in which the prior stands in.
        told_apart: whether in ``best_round`` more were re-identified than of the control.
        luck: probability of as many hits if update and control told the same and all tries were
            independent of each other (Fisher's exact test, one-sided).
        luck_of_images: the same if a hit or miss only repeats itself from round to round, so that
            no more than the number of images counts. A frozen defence or a prior that happens to
            resemble an image does just that.
        luck_of_rounds: probability of as many rounds in which more was recovered than of the
            control and than by a good guess, if either came first as often (sign test).
        compared: runs that it counts.
    """

    attack: str
    rounds: int
    runs: int
    images: int
    tries: int
    hits: int
    control_tries: int
    control_hits: int
    prior_hits: int
    by_chance: float
    recovered: float
    best_round: int
    control_recovered: float
    control_scatter: float
    missing_controls: int
    told_apart: bool
    luck: float
    luck_of_images: float
    luck_of_rounds: float
    compared: int

    @property
    def least_luck(self) -> float:
        """The least that ``luck`` could have been with as many hits of both together."""
        total = self.hits + self.control_hits
        most = min(total, self.tries)
        return fisher(most, self.tries, total - most, self.control_tries)

    @property
    def least_luck_of_rounds(self) -> float:
        """The least that ``luck_of_rounds`` could have been with as many rounds."""
        return float(0.5**self.compared)


def tries_of(records: Sequence[LeakageRecord]) -> list[Try]:
    """Pair the scored records with their controls, in the order of rounds."""
    controls = {record.key: record for record in records if record.control}
    found = []
    for record in sorted(records, key=lambda record: record.key):
        if record.control or record.status != "ok":
            continue
        control = controls.get(replace(record, control=True).key)
        found.append(
            Try(
                record,
                Scores.from_dict(record.scores()),
                Scores.from_dict(control.scores()) if control and control.status == "ok" else None,
                _prior(record),
            )
        )
    return found


def weigh(tries: Sequence[Try]) -> list[Evidence]:
    """Sum up the tries of one site, attack by attack, in the order of their names."""
    by_attack: dict[str, list[Try]] = defaultdict(list)
    for item in tries:
        by_attack[item.record.attack].append(item)
    return [sum_up(attack, own) for attack, own in sorted(by_attack.items())]


def sum_up(attack: str, tries: Sequence[Try]) -> Evidence:
    """Sum up tries on the same site; there is at least one."""
    sought = [item for item in tries if not math.isnan(item.real.reid)]
    beside = [item for item in sought if not math.isnan(item.beside.reid)]
    count, hits = sum(item.images for item in sought), sum(_hits(i, i.real) for i in sought)
    control_count = sum(item.images for item in beside)
    control_hits = sum(_hits(item, item.beside) for item in beside)
    best = max(tries, key=lambda item: _or_least(item.real.recovered))
    images = min(item.images for item in tries)
    bars = [i.beside.recovered for i in tries if not math.isnan(i.beside.recovered)]
    pairs = _recovered_pairs(tries)
    return Evidence(
        attack=attack,
        rounds=len({(item.record.round, item.record.seed) for item in tries}),
        runs=len(tries),
        images=images,
        tries=count,
        hits=hits,
        control_tries=control_count,
        control_hits=control_hits,
        prior_hits=sum(_hits(item, item.prior) for item in sought),
        by_chance=sum(i.images / i.real.gallery for i in sought if i.real.gallery > 0),
        recovered=best.real.recovered,
        best_round=best.record.round,
        control_recovered=max(bars, default=math.nan),
        control_scatter=pstdev(bars) if bars else 0.0,
        missing_controls=sum(item.control is None for item in tries),
        told_apart=best.real.reid > best.beside.reid,
        luck=fisher(hits, count, control_hits, control_count),
        luck_of_images=_fisher_of_images(hits, count, control_hits, control_count, images),
        luck_of_rounds=_sign_test(pairs),
        compared=len(pairs),
    )


def _prior(record: LeakageRecord) -> Scores:
    nothing = dict.fromkeys(record.scores())
    return Scores.from_dict(nothing | record.prior)


def _hits(item: Try, scores: Scores) -> int:
    return 0 if math.isnan(scores.reid) else round(scores.reid * item.images)


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def fisher(hits: int, tries: int, control_hits: int, control_tries: int) -> float:
    """Return how likely so many hits more than the control's are if both tell the same."""
    if not tries or not control_tries:
        return 1.0
    table = [[hits, tries - hits], [control_hits, control_tries - control_hits]]
    return float(fisher_exact(table, alternative="greater").pvalue)


def _fisher_of_images(
    hits: int, tries: int, control_hits: int, control_tries: int, images: int
) -> float:
    if not tries or not control_tries:
        return 1.0
    # Rounded in favour of luck; the small number takes back what a division may have lost.
    kept = math.floor(hits / tries * images + 1e-9)
    control = math.ceil(control_hits / control_tries * images - 1e-9)
    return fisher(kept, images, control, images)


def _recovered_pairs(tries: Sequence[Try]) -> list[tuple[float, float]]:
    """Return what was recovered of update and control wherever both are defined."""
    return [
        (item.real.recovered, item.beside.recovered)
        for item in tries
        if not math.isnan(item.real.recovered) and not math.isnan(item.beside.recovered)
    ]


def _sign_test(pairs: Sequence[tuple[float, float]]) -> float:
    if not pairs:
        return 1.0
    won = sum(real > max(beside, 0.0) for real, beside in pairs)
    return float(binomtest(won, len(pairs), 0.5, alternative="greater").pvalue)
