"""Numbers of a comparison: means over sites, rounds and seeds with their spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gradward.metrics.scores import Comparison
from gradward.report.records import LeakageRecord
from gradward.report.run_folder import Run
from gradward.report.summary import best_by_round, severity

ACCURACY = "valid/accuracy"
LAST_ROUNDS = 3
MEASURES = ("recovered", "reid", "rdlv")


@dataclass(frozen=True)
class Estimate:
    """A mean with its spread.

    Attributes:
        mean: nan where there is no value.
        deviation: sample standard deviation; nan of fewer than two values.
        count: of the values.
    """

    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class Observation:
    """The best of all attacks on one update; ``site``, ``round``, ``seed`` say which."""

    site: str
    round: int
    seed: int
    best: Comparison


@dataclass(frozen=True)
class Measured:
    """One measure of leakage.

    Attributes:
        real: on the sites' updates.
        control: on the wrong updates.
        beyond: real beyond control, update by update: ``max(real, 0) - max(control, 0)``. Where an
            attack does worse than the best guess without the update (0), that guess counts, on
            either side. Updates without a control are left out.
    """

    real: Estimate
    control: Estimate
    beyond: Estimate


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and sample standard deviation of the values that are not nan."""
    known = [value for value in values if not math.isnan(value)]
    return Estimate(
        mean=statistics.fmean(known) if known else math.nan,
        deviation=statistics.stdev(known) if len(known) > 1 else math.nan,
        count=len(known),
    )


def observations(records: Sequence[LeakageRecord]) -> list[Observation]:
    """Best of attacks for each site and round of one run's records of one subject."""
    found: dict[tuple[str, int], list[LeakageRecord]] = {}
    for record in records:
        found.setdefault((record.site, record.seed), []).append(record)
    return [
        Observation(site, number, seed, best)
        for (site, seed), own in found.items()
        for number, best in best_by_round(own).items()
    ]


def measure(name: str, seen: Sequence[Observation]) -> Measured:
    """Summarise one of :data:`MEASURES`."""
    pairs = [
        (
            getattr(item.best.real, name),
            math.nan if item.best.control is None else getattr(item.best.control, name),
        )
        for item in seen
    ]
    return Measured(
        real=estimate(real for real, _ in pairs),
        control=estimate(control for _, control in pairs),
        beyond=estimate(_floor(real) - _floor(control) for real, control in pairs),
    )


def worst(seen: Sequence[Observation]) -> Observation | None:
    """The update that gave away most: the most re-identified, then the most recovered."""
    return max(seen, key=lambda item: severity(item.best.real), default=None)


def accuracy(runs: Sequence[Run]) -> Estimate:
    """Accuracy of the global model on the sites' validation images in the last rounds.

    A site measures the model that it gets at the start of a round, so the first round is of the
    untrained one and is left out wherever there are others. Of the rest the last
    :data:`LAST_ROUNDS` count, for every site and seed alike.
    """
    return estimate(value for run in runs for value in _last_accuracies(run))


def _last_accuracies(run: Run) -> Iterator[float]:
    # After a restart a round is measured again: the later value counts.
    found = {(item.site, item.step): item.value for item in run.scalars if item.tag == ACCURACY}
    steps = sorted({step for _, step in found})
    last = set((steps[1:] or steps)[-LAST_ROUNDS:])
    yield from (value for (_, step), value in found.items() if step in last)


def _floor(value: float) -> float:
    return value if math.isnan(value) else max(value, 0.0)
