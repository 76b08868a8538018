"""How far long work is, and how long it still takes: bars on a terminal, else lines, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from gradward.audit import UpdateAudit
from gradward.remaining import Remaining
from gradward.report.table import many

messages = Console(stderr=True)
_LEFT = TextColumn("{task.fields[left]}")


def on_terminal() -> bool:
    """Whether bars can be drawn: what forces colours into a pipe does not make it a terminal."""
    return messages.is_interactive and sys.stderr.isatty()


class _Bars:
    """What the three kinds of progress share."""

    def __init__(self, *columns: ProgressColumn) -> None:
        self._drawn = on_terminal()
        self._progress = Progress(
            *columns, TimeElapsedColumn(), console=messages, disable=not self._drawn
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def _line(self, text: str) -> None:
        if not self._drawn:
            click.echo(text, err=True)


class RunProgress(_Bars):
    """One line that follows a run: phase, round, sites heard, audits open, perturbers fitted."""

    def __init__(self, job: str) -> None:
        super().__init__(SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
        self._job = job
        self._last: tuple[str, ...] = ()
        self._training, self._auditing = Remaining(), Remaining()
        self._most_open = 0
        self._task = self._progress.add_task(f"{job}: starting", total=None)

    def show(self, status: Mapping[str, Any]) -> None:
        """Show the entries of the server's status file.

        Args:
            status: may have ``fits`` besides, by site what its :class:`FitProgress` keeps.
        """
        if not status:
            return
        line, rest = f"{self._job}: {status['phase']}", ""
        if "round" in status:
            line += (
                f", round {status['round'] + 1} of {status['rounds']}, "
                f"{status['sites_heard']} of {status['sites']} sites heard, "
                f"{many(status['audits_open'], 'audit')} open"
            )
            done = status["round"] + status["sites_heard"] / max(status["sites"], 1)
            self._progress.update(self._task, total=status["rounds"], completed=done)
            rest = self._left(status, done / max(status["rounds"], 1))
        fits: Mapping[str, Mapping[str, Any]] = status.get("fits", {})
        told = [f"; {site} fits its perturber: {fit['words']}" for site, fit in fits.items()]
        self._progress.update(self._task, description=line + rest + "".join(told))
        # Shares and seconds change all the time.
        state = (line, *(f"{site} {fit['part']}" for site, fit in fits.items()))
        if state != self._last:
            self._line(line + rest + "".join(told))
        self._last = state

    def _left(self, status: Mapping[str, Any], trained: float) -> str:
        if status["phase"] == "training":
            return self._training.words(trained).replace(" left", " of training left")
        if status["phase"] != "auditing":
            return ""
        self._most_open = max(self._most_open, status["audits_open"])
        return self._auditing.words(1 - status["audits_open"] / max(self._most_open, 1))


class AuditProgress(_Bars):
    """A bar for each attack of an audit and its control; a line each where no bar can be drawn."""

    def __init__(self, attacks: Sequence[str]) -> None:
        """Args: names of the attacks, in their order; the controls follow in the same."""
        super().__init__(TextColumn("{task.description}"), BarColumn(), _LEFT)
        self._order = [*attacks, *(f"{name} (control)" for name in attacks)]
        self._whole = self._progress.add_task("all attacks", total=1.0, left="")
        self._tasks: dict[str, TaskID] = {}
        self._remaining = Remaining()
        self._own: dict[str, Remaining] = {}

    def show(self, attack: str, share: float) -> None:
        """Show that ``share`` of an attack's budget is spent."""
        # An attack that does not apply is over at once: those before this one are done.
        number = self._order.index(attack)
        whole = (number + share) / len(self._order)
        left = self._remaining.words(whole)
        self._progress.update(self._whole, completed=whole, left=left.removeprefix(", "))
        if attack not in self._tasks:
            self._tasks[attack] = self._progress.add_task(attack, total=1.0, left="")
            self._own[attack] = Remaining()
            self._line(f"{attack} ... ({number + 1} of {len(self._order)}{left})")
        own = self._own[attack].words(share) if share < 1 else ""
        self._progress.update(self._tasks[attack], completed=share, left=own.removeprefix(", "))


class BatchProgress(_Bars):
    """How many of several updates are finished; a line for each where no bar can be drawn."""

    def __init__(self, total: int) -> None:
        super().__init__(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _LEFT)
        self.finished = 0
        self._remaining = Remaining()
        self._remaining.words(0.0)
        self._task = self._progress.add_task("updates", total=total, left="")

    def show(self, update: UpdateAudit, finished: int, total: int) -> None:
        """Show that one more update is finished."""
        self.finished = finished
        left = self._remaining.words(finished / total) if finished < total else ""
        self._progress.update(self._task, completed=finished, left=left.removeprefix(", "))
        self._line(f"{finished} of {total} updates{left}: {update.name}, {update.status}")
