"""How long an attack may search, and how much of that is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

MIN_EVALUATIONS = 10


@dataclass(frozen=True)
class Budget:
    """How long one attack may search; the first bound that is reached ends it.

    Attributes:
        evaluations: of loss and gradient, of all candidate images at once.
        image_evaluations: bound on evaluations times the images that each of them processes, so
            that large updates do not take hours; at least 10 evaluations are granted.
        seconds: wall-clock bound; a result cut short by it cannot be reproduced.
        cpu_seconds: the same of the process's CPU time, for comparisons on a busy machine.

    Raises:
        ValueError: no bound, or one that is not positive.
    """

    evaluations: int | None = None
    image_evaluations: int | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None

    def __post_init__(self) -> None:
        """Refuse bounds that leave nothing to spend, or never end."""
        bounds = asdict(self)
        for name, value in bounds.items():
            if value is not None and (isinstance(value, bool) or not value > 0):
                raise ValueError(f"{name} must be positive, got {value!r}")
        if all(value is None for value in bounds.values()):
            raise ValueError(f"a budget needs at least one of {', '.join(bounds)}")

    def evaluations_for(self, images_per_evaluation: int) -> float:
        """Return the evaluations granted to an attack that processes so many images in each.

        Infinite where only time is bounded.
        """
        bounds = [math.inf if self.evaluations is None else self.evaluations]
        if self.image_evaluations is not None:
            bounds.append(max(self.image_evaluations // images_per_evaluation, MIN_EVALUATIONS))
        return min(bounds)


class Meter:
    """What one attack has spent of its budget.

    Args:
        budget: of the attack, all restarts and stages together.
        images_per_evaluation: that the attack processes.
        progress: called with the share of the budget that is spent, in [0, 1], at each percent.

    Attributes:
        evaluations: spent so far.
        reserved: evaluations kept for later, which count as spent.
    """

    def __init__(
        self,
        budget: Budget,
        images_per_evaluation: int = 1,
        progress: Callable[[float], None] | None = None,
    ):
        self.evaluations = 0
        self.reserved = 0
        self._limit = budget.evaluations_for(images_per_evaluation)
        self._seconds = (
            (time.monotonic, time.monotonic(), budget.seconds),
            (time.process_time, time.process_time(), budget.cpu_seconds),
        )
        self._tell = progress
        self._told = 0

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        share = (self.evaluations + self.reserved) / self._limit
        for clock, start, granted in self._seconds:
            if granted is not None:
                share = max(share, (clock() - start) / granted)
        return min(share, 1.0)

    def count(self) -> None:
        """Count one evaluation."""
        self.evaluations += 1
        if self._tell is not None and (percent := int(100 * self.progress)) > self._told:
            self._told = percent
            self._tell(percent / 100)


class Allowance:
    """A part of a budget: from what is spent when it is made up to a mark.

    What a stage leaves over is the next one's, for each begins where the meter stands.

    Args:
        meter: of the attack.
        end: share of the whole budget at which this part ends.
    """

    def __init__(self, meter: Meter, end: float = 1.0):
        self.meter = meter
        self._begin = meter.progress
        self._end = end

    def until(self, share: float) -> Allowance:
        """Return the part that begins now and ends where ``share`` of this one is spent."""
        return Allowance(self.meter, self._begin + share * (self._end - self._begin))

    @property
    def progress(self) -> float:
        """Share of this part that is spent, in [0, 1]."""
        length = self._end - self._begin
        return 1.0 if length <= 0 else min((self.meter.progress - self._begin) / length, 1.0)
