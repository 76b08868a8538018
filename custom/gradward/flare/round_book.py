"""Which rounds are open, who was heard in them, and whose starting weights are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class RoundBook:
    """What the auditor notes while it follows a workflow; not for use from several threads."""

    def __init__(self, every_n_rounds: int, sites: Sequence[str] | None) -> None:
        """Args: audit rounds whose number this divides, and these sites alone; None for all."""
        self._every_n_rounds = every_n_rounds
        self._sites = sites
        self._heard: dict[int, set[str]] = {}
        self._asked: dict[int, set[str]] = {}
        self._open: set[int] = set()
        self._known: set[int] = set()

    def wanted(self, sites: Iterable[str]) -> list[str]:
        """Return those of ``sites`` that are audited at all."""
        return [site for site in sites if self._sites is None or site in self._sites]

    def is_audited(self, number: int, site: str | None = None) -> bool:
        """Whether the round, or the update of ``site`` in it, is audited."""
        wanted = site is None or bool(self.wanted([site]))
        return wanted and number % self._every_n_rounds == 0

    def start(self, number: int) -> None:
        """Open a round."""
        self._open.add(number)

    def close(self) -> list[int]:
        """Close what is open and return it."""
        closed, self._open = sorted(self._open), set()
        return closed

    def learn_weights(self, number: int) -> bool:
        """Note that the round's starting weights are at hand; False if they were before."""
        new = number not in self._known
        self._known.add(number)
        return new

    def knows_weights(self, number: int) -> bool:
        """Whether the round's starting weights are at hand."""
        return number in self._known

    def hear(self, site: str, number: int) -> bool:
        """Note an update; False if the site sent one in this round before."""
        return _note(self._heard.setdefault(number, set()), site)

    def ask(self, site: str, number: int) -> bool:
        """Note that a canary is ordered; False if it was before."""
        return _note(self._asked.setdefault(number, set()), site)

    def heard(self, number: int) -> frozenset[str]:
        """Sites heard in a round."""
        return frozenset(self._heard.get(number, ()))

    def asked(self, number: int) -> frozenset[str]:
        """Sites asked for a canary in a round."""
        return frozenset(self._asked.get(number, ()))

    def audited(self, number: int, sites: Iterable[str]) -> list[str]:
        """Return those of ``sites`` that are audited in a round."""
        return self.wanted(sites) if self.is_audited(number) else []


def _note(names: set[str], name: str) -> bool:
    new = name not in names
    names.add(name)
    return new
