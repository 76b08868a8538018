"""The defences of a run: what the job asked for beside what the sites stated with their updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradward.report.coverage import sites_of
from gradward.report.run_folder import (
    DP_SGD,
    GATE,
    GUARD,
    NONE,
    PERTURBATION,
    UPDATE_FILTER,
    WITHHELD,
    Defence,
    Run,
    UpdateRecord,
)

# A receipt of an update that was trained on raw images says one of these.
_UNDEFENDED = ("none", "undefended")
_KINDS = {
    PERTURBATION: "training on perturbed images",
    GUARD: "guard: only perturbed updates leave",
    GATE: "gate: the site stops at its leakage limit",
    UPDATE_FILTER: "change to the update",
    DP_SGD: "training with DP-SGD",
}
_BUFFERS = {
    "seen": "BatchNorm statistics sent",
    WITHHELD: "BatchNorm statistics withheld",
    NONE: "no BatchNorm statistics in this model",
}
# Seconds say nothing about a defence.
_NOT_SHOWN = "fit_seconds"


@dataclass(frozen=True)
class SiteDefence:
    """Attributes: a site's name, what was asked, stated and streamed, and what does not fit."""

    site: str
    asked: tuple[str, ...]
    stated: tuple[str, ...]
    figures: tuple[str, ...]
    mismatch: str | None


def defences_of(run: Run) -> list[SiteDefence]:
    """Set beside each other what the job asked of each site and what that stated."""
    return [_of_site(run, site) for site in sites_of(run)]


def _of_site(run: Run, site: str) -> SiteDefence:
    asked = [
        defence
        for defence in (run.configuration.defences if run.configuration else ())
        if defence.sites is None or site in defence.sites
    ]
    updates = [update for update in run.updates if update.site == site]
    figures = {
        scalar.tag.removeprefix("defense/"): scalar.value
        for scalar in run.scalars
        if scalar.site == site and scalar.tag.startswith("defense/")
    }
    return SiteDefence(
        site,
        tuple(map(_describe, asked)),
        tuple(_stated(updates)),
        tuple(f"{name} {value:.3g}" for name, value in figures.items() if name != _NOT_SHOWN),
        _mismatch(asked, updates),
    )


def _describe(defence: Defence) -> str:
    settings = ", ".join(f"{name} {_plain(value)}" for name, value in defence.settings.items())
    words = _KINDS[defence.kind]
    if defence.kind == UPDATE_FILTER:
        words += f" ({defence.name})"
    return f"{words}: {settings}" if settings else words


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, str) or not isinstance(value, Sequence):
        return str(value)
    return ", ".join(map(_plain, value))


def _stated(updates: Sequence[UpdateRecord]) -> list[str]:
    total = len(updates)
    modes = Counter(update.mode for update in updates)
    told = [f"{_mode(mode)}: {count} of {total} updates" for mode, count in modes.items()]
    buffers = Counter(update.buffers for update in updates)
    return told + [f"{_BUFFERS[name]}: {count} of {total}" for name, count in buffers.items()]


def _mode(mode: str | None) -> str:
    if mode is None:
        return "nothing stated"
    return "raw images, undefended" if mode in _UNDEFENDED else mode


def _mismatch(asked: Sequence[Defence], updates: Sequence[UpdateRecord]) -> str | None:
    """Say where an update was accepted that does not state the training defence it should have."""
    if not any(defence.kind in (PERTURBATION, DP_SGD) for defence in asked):
        return None
    bare = sum(update.mode is None or update.mode in _UNDEFENDED for update in updates)
    if not bare:
        return None
    return (
        f"{bare} of {len(updates)} updates state no defence, though the job asked for one: ask "
        "the site why."
    )
