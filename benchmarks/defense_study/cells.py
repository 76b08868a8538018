"""Which cells a run of the study consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .arms import CERTIFIED_ARMS
from .protocol import SETS
from .store import CellKey


def plan_cells(
    sets: Sequence[str] | None,
    arms: Sequence[str] | None,
    seeds: Sequence[int],
    settings: Mapping[str, Sequence[str]],
) -> list[CellKey]:
    """List the cells, those of one set and seed in a row.

    Args:
        sets: study sets; None takes all of them, histology excepted, which stands in where no
            other data is there.
        arms: None takes those that a set is there for: sets of larger sites serve the certified
            curve.
        seeds: of the divisions.
        settings: of each arm.
    """
    chosen = [name for name in SETS if name != "histology"] if sets is None else sets
    return [
        CellKey(name, seed, arm, setting)
        for name in chosen
        for seed in seeds
        for arm in (_arms_of(name, settings) if arms is None else arms)
        for setting in settings[arm]
    ]


def _arms_of(name: str, settings: Mapping[str, Sequence[str]]) -> list[str]:
    large = SETS[name].certified_only
    return [arm for arm in settings if not large or arm in CERTIFIED_ARMS]
