"""`docs/errors.md` says what is said: each of its messages is provoked, and none is left out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from .provoked import PACKAGE, Met, mistakes, provoke

TABLES = Path(__file__).parents[2] / "docs" / "errors.md"
# Never shown to anybody: each is caught where it can arise.
CAUGHT = {
    "BudgetSpent": "ends a search",
    "TrainingAborted": "becomes NVFlare's own answer to an aborted task",
    "_CannotBegin": "becomes an AuditError",
    "EnoughSeen": "ends a pass through a network",
    "AttackFailed": "becomes the status of a record, with the worker's words",
}


# Kinds of error whose every module must have a row.
FAMILIES = (
    "AttachError",
    "AuditError",
    "DataError",
    "JobError",
    "JsonFileError",
    "KitError",
    "ModelError",
    "RunError",
    "SiteSettingsError",
    "StateFileError",
    "SubmissionError",
)
# Modules of theirs without one: nothing that a user gives reaches them unchecked.
ELSEWHERE = {
    "metrics/linkage.py": "for studies in Python",
}


class Row(NamedTuple):
    message: str
    kind: str
    remedy: str


def rows() -> list[Row]:
    found = []
    for line in TABLES.read_text().splitlines():
        if line.startswith("| `"):
            message, source, remedy = (part.strip() for part in line.strip("|").split(" | "))
            kind = re.search(r": (\w+)$", source)
            assert kind, line
            found.append(Row(_text(message), kind.group(1), remedy))
    return found


def _text(code: str) -> str:
    """Return what Markdown shows of code in one or two backticks."""
    marks = "``" if code.startswith("``") else "`"
    return code.removeprefix(marks).removesuffix(marks).strip()


def pattern(message: str) -> re.Pattern[str]:
    return re.compile(".+?".join(map(re.escape, message.split("…"))))


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """What a mistake gives, made once."""

    @cache
    def make(begin: str) -> Met:
        return provoke(mistakes()[begin], tmp_path_factory.mktemp("mistake"))

    return make


def begins(message: str) -> list[str]:
    """The registered mistakes whose beginning is this message's; the longest says which."""
    return sorted((b for b in mistakes() if message.startswith(b)), key=len)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.message[:50])
def test_a_message_is_as_the_table_says(row: Row, met) -> None:  # type: ignore[no-untyped-def]
    known = begins(row.message)
    assert known, "nothing provokes it"
    error: Met = met(known[-1])
    assert pattern(row.message).fullmatch(error.message), error.message
    assert row.kind in error.kinds
    assert row.remedy


def test_every_mistake_has_its_row() -> None:
    told = [begins(row.message)[-1] for row in rows() if begins(row.message)]
    assert sorted(told) == sorted(mistakes()), "twice, or not in the table"


def test_every_kind_of_error_is_in_the_table(met) -> None:  # type: ignore[no-untyped-def]
    seen = {kind for begin in mistakes() for kind in met(begin).kinds}
    own = {
        node.name
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and _is_error(node)
    }
    assert own - seen == set(CAUGHT)


def test_every_error_of_a_command_is_in_the_table(met) -> None:  # type: ignore[no-untyped-def]
    """No place in the command line's modules raises what no row has come through."""
    reached = {place for begin in mistakes() for place in met(begin).places}
    missing = [
        f"{file.name}:{first}"
        for file in sorted(PACKAGE.glob("cli*.py"))
        for first, last in _places(file)
        if not any((file.name, line) in reached for line in range(first, last + 1))
    ]
    assert not missing


def test_every_module_of_a_family_is_in_the_table(met) -> None:  # type: ignore[no-untyped-def]
    """Errors of data, jobs, settings, kits and states: no module that raises them is left out."""
    reached = {file for begin in mistakes() for file, _ in met(begin).places}
    raising = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and _name(node.exc) in FAMILIES
    }
    assert sorted(raising - reached) == sorted(ELSEWHERE)


def _is_error(node: ast.ClassDef) -> bool:
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    return any(base.endswith(("Error", "Exception")) for base in bases)


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _places(file: Path) -> list[tuple[int, int]]:
    """Lines of the statements that raise a click exception or let an option fail."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        raised = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        if (raised and _name(node.exc) in ("ClickException", "UsageError", "BadParameter")) or (
            isinstance(node, ast.Call) and ast.unparse(node.func) == "self.fail"
        ):
            found.append((node.lineno, node.end_lineno or node.lineno))
    return found
