"""Mistakes, each made for real: what `docs/errors.md` promises is compared with what they give."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from gradward.cli import main

PACKAGE = Path(import_module("gradward").__file__ or "").parent
PARTS = ("command_line", "kits", "jobs", "data", "perturbation", "sites", "updates")

Mistake = Callable[[Path], Any]
_mistakes: dict[str, Mistake] = {}


@dataclass(frozen=True)
class Met:
    """An error as it was met.

    Attributes:
        kinds: names of its class, of what that is, and of those that it came from.
        message: its text, on one line.
        places: file below the package and line of every frame that it, or what it came from, went
            through; innermost first.
    """

    kinds: tuple[str, ...]
    message: str
    places: tuple[tuple[str, int], ...]


def mistake(begin: str) -> Callable[[Mistake], Mistake]:
    """Register what provokes the message in the table that begins so."""

    def keep(make: Mistake) -> Mistake:
        assert begin not in _mistakes, begin
        _mistakes[begin] = make
        return make

    return keep


def mistakes() -> dict[str, Mistake]:
    """Return all of them, by how their message begins in the table."""
    for part in PARTS:
        import_module(f"{__name__}.{part}")
    return _mistakes


def provoke(make: Mistake, folder: Path) -> Met:
    """Make a mistake in an empty folder, the current one, and return the error."""
    with contextlib.chdir(folder):
        try:
            make(folder)
        except Exception as error:
            return _met(error)
    raise AssertionError("no error came of it")


def gradward(*arguments: str) -> None:
    """Run the command so that its error can be looked at."""
    main.main(list(arguments), standalone_mode=False)


def _met(error: Exception) -> Met:
    places, kinds = [], []
    link: BaseException | None = error
    while link is not None:
        kinds += [kind.__name__ for kind in type(link).__mro__]
        for frame in reversed(traceback.extract_tb(link.__traceback__)):
            file = Path(frame.filename)
            if file.is_relative_to(PACKAGE):
                places.append((str(file.relative_to(PACKAGE)), frame.lineno or 0))
        link = link.__cause__ or link.__context__
    text = getattr(error, "message", None) or str(error)
    return Met(tuple(kinds), " ".join(text.split()), tuple(places))
