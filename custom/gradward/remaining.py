"""How long work still takes, judged by how long it took so far."""

from __future__ import annotations

import time
from collections.abc import Callable


class Remaining:
    """Extrapolates the mean speed since the first look; work that was found done does not count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: a clock in seconds."""
        self._clock = clock
        self._first: tuple[float, float] | None = None

    def seconds(self, share: float) -> float | None:
        """Return the seconds until ``share``, the part that is done, reaches 1.

        None as long as nothing was seen to move: there is nothing to judge by.
        """
        now = self._clock()
        if self._first is None:
            self._first = now, share
        began, before = self._first
        if share <= before:
            return None
        return max(0.0, (now - began) * (1 - share) / (share - before))

    def words(self, share: float) -> str:
        """Return ``", about 5 min left"``, or nothing at the end or with nothing to judge by."""
        seconds = self.seconds(share)
        return "" if seconds is None or share >= 1 else f", {in_words(seconds)} left"


class Steps:
    """Counts the steps of work whose steps take about as long each, e.g. the cells of a study."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: their number, and a clock in seconds, which runs from now on."""
        self._total, self._done = total, 0
        self._remaining = Remaining(clock)
        self._remaining.seconds(0.0)

    def next(self) -> str:
        """Count one and return ``"[3 of 40, about 2 h left]"``."""
        self._done += 1
        return f"[{self._done} of {self._total}{self._remaining.words(self._done / self._total)}]"

    def skip(self, number: int) -> None:
        """Leave out steps that there are not after all."""
        self._total -= number


def in_words(seconds: float) -> str:
    """Return a duration as roughly as an extrapolation deserves it."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
