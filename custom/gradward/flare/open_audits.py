"""Which audits are under way, and which rounds still need their global weights."""

from __future__ import annotations

import threading
from collections.abc import Iterable


class OpenAudits:
    """Attacks to be done on each site's update of each round; used by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str, int], set[str]] = {}
        self._done_rounds: set[int] = set()

    def __len__(self) -> int:
        with self._lock:
            return len(self._open)

    def add(self, site: str, number: int, attacks: Iterable[str]) -> bool:
        """Open an audit; return False if it is open already or there is nothing to attack."""
        pending = set(attacks)
        with self._lock:
            if not pending or (site, number) in self._open:
                return False
            self._open[site, number] = pending
            return True

    def has(self, site: str, number: int) -> bool:
        """Whether the audit is open, and was not given up meanwhile."""
        with self._lock:
            return (site, number) in self._open

    def pending(self, site: str, number: int) -> list[str]:
        """Return the attacks of an audit that are not ticked off."""
        with self._lock:
            return sorted(self._open.get((site, number), ()))

    def all(self) -> list[tuple[str, int]]:
        """Return site and round of each open audit."""
        with self._lock:
            return list(self._open)

    def tick(self, site: str, number: int, attack: str) -> bool:
        """Tick off one attack; return True if it was the last one of its audit."""
        with self._lock:
            pending = self._open.get((site, number))
            if pending is None:
                return False
            pending.discard(attack)
            if pending:
                return False
            del self._open[site, number]
            return True

    def round_done(self, number: int) -> None:
        """Note that no audit of this round will be opened any more."""
        with self._lock:
            self._done_rounds.add(number)

    def needs_round(self, number: int) -> bool:
        """Whether audits of a round are open, or may still be opened."""
        with self._lock:
            in_use = any(open_round == number for _, open_round in self._open)
            return in_use or number not in self._done_rounds
