"""Which cells a run of the study consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .store import CellKey


def plan_cells(
    sets: Sequence[str],
    arms: Sequence[str] | None,
    seeds: Sequence[int],
    settings: Mapping[str, Sequence[str]],
) -> list[CellKey]:
    """List the cells, those of one set and seed in a row.

    Args:
        sets: study sets.
        arms: None takes all that have settings.
        seeds: of the divisions.
        settings: of each arm.

    Raises:
        KeyError: an arm without settings.
    """
    return [
        CellKey(name, seed, arm, setting)
        for name in sets
        for seed in seeds
        for arm in (settings if arms is None else arms)
        for setting in settings[arm]
    ]
