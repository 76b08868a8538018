"""A site's private logs as tables of its own page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradward.metrics.scores import Scores

# Of a log's latest entries; the log itself has all of them.
MOST_ROWS = 500
# What the page calls the pictures that an answer scores.
ROLES = {"real": "reconstruction", "control": "control", "prior": "starting picture"}
_NAMES = tuple(Scores.__dataclass_fields__)
Entries = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class LogTable:
    """What is shown of a log.

    Attributes:
        headings: of the columns.
        rows: a text for each of them.
        left_out: earlier entries that are not shown.
    """

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left_out: int = 0


def requests_table(answers: Entries) -> LogTable:
    """Show who asked for what, and what became of it."""
    columns = {
        "time": "When",
        "asked_by": "Asked by",
        "submitted_by": "Job of",
        "round": "Round",
        "attack": "Attack",
        "asked_images": "Pictures sent here",
        "asked_control": "Controls sent here",
        "status": "Answer",
        "reason": "Reason",
    }
    return _table(answers, columns, hidden=ROLES)


def answers_table(answers: Entries) -> LogTable:
    """Show every scalar that an answer told, a row for each picture that was scored."""
    rows = [
        (
            figure(entry.get("round")),
            figure(entry.get("attack")),
            words,
            *(figure(entry[role].get(name)) for name in _NAMES),
        )
        for entry in answers
        for role, words in ROLES.items()
        if isinstance(entry.get(role), dict)
    ]
    names = tuple(name.replace("_", " ").replace("prior", "starting picture's") for name in _NAMES)
    return LogTable(("Round", "Attack", "Picture", *names), rows)


def scalars_table(entries: Entries) -> LogTable:
    """Show what was streamed; what left at the same time under one heading is one row."""
    rows: list[tuple[str, ...]] = []
    for entry in entries[-MOST_ROWS:]:
        told = entry.get("scalars")
        groups: dict[str, list[str]] = {}
        for tag, value in told.items() if isinstance(told, dict) else ():
            under, _, name = tag.rpartition("/")
            groups.setdefault(under, []).append(f"{name} {figure(value)}")
        when, number = figure(entry.get("time")), figure(entry.get("round"))
        rows += [(when, number, under, ", ".join(values)) for under, values in groups.items()]
    headings = ("When", "Round", "Under", "Scalars")
    return LogTable(headings, rows, max(0, len(entries) - MOST_ROWS))


def guard_table(entries: Entries) -> LogTable:
    """Show what the guard decided over each result of a task."""
    columns = {
        "time": "When",
        "task": "Task",
        "round": "Round",
        "verdict": "Verdict",
        "reason": "Reason",
    }
    return _table(entries, columns)


def gate_table(entries: Entries) -> LogTable:
    """Show what the leakage gate decided over each update."""
    columns = {"time": "When", "round": "Round", "verdict": "Verdict", "reason": "Reason"}
    return _table(entries, columns)


def figure(value: Any) -> str:
    """Write a value of a log; what is undefined is a dash.

    >>> figure(0.12345), figure(3), figure(float("nan")), figure(-0.0)
    ('0.1235', '3', '–', '0')
    """
    if value is None or value != value or value == "":
        return "–"
    return f"{value + 0.0:.4g}" if isinstance(value, float) else str(value)


def _table(entries: Entries, columns: Mapping[str, str], hidden: Iterable[str] = ()) -> LogTable:
    """Show entries by the named columns, and whatever else they hold in a last one."""
    rows, known = [], {*columns, *hidden}
    for entry in entries[-MOST_ROWS:]:
        further = [
            f"{name.replace('_', ' ')} {figure(value)}"
            for name, value in entry.items()
            if name not in known
        ]
        rows.append((*(figure(entry.get(name)) for name in columns), ", ".join(further)))
    headings = (*columns.values(), "Further")
    if not any(row[-1] for row in rows):
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    return LogTable(headings, rows, max(0, len(entries) - MOST_ROWS))
