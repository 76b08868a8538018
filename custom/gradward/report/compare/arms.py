"""Which runs are repetitions of one setting, which sites belong together, what is unlike."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gradward.report.compare.settings import (
    Settings,
    differing,
    seed_of,
    shared_settings,
    site_settings,
    sites_of,
)
from gradward.report.run_folder import Configuration, Run
from gradward.report.status import not_finished


@dataclass(frozen=True)
class Arm:
    """Runs of one setting that differ in nothing but their seed.

    Attributes:
        name: for people.
        runs: at least one.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def configuration(self) -> Configuration | None:
        """What was asked, but for the seed; None of runs that left no configuration."""
        return self.runs[0].configuration

    def settings(self, site: str) -> Settings:
        """Everything that was asked of a site; empty where that is unknown."""
        if self.configuration is None:
            return {}
        shared = shared_settings(self.configuration)
        return {**shared, **site_settings(self.configuration, site)}


def arms_of(runs: Sequence[Run], names: Sequence[str] | None = None) -> list[Arm]:
    """Group runs that differ only in their seed, in the order in which they were given.

    Args:
        runs: to compare.
        names: one for each run; runs of one name are one arm. By default runs of equal
            configuration and other seeds are grouped and named after their folders.

    Raises:
        ValueError: the names do not fit the runs.
    """
    groups = _by_configuration(runs) if names is None else _by_name(runs, names)
    if names is not None:
        return [Arm(name, tuple(group)) for name, group in groups.items()]
    labels = _unique([_label(group) for group in groups.values()])
    return [Arm(name, tuple(own)) for name, own in zip(labels, groups.values(), strict=True)]


def groups_of_sites(arms: Sequence[Arm]) -> list[tuple[str, ...]]:
    """Sites that are asked the same as each other in every arm, so that rows compare.

    Where a run left no configuration nobody knows what its sites have in common; each is a group.
    """
    groups: dict[str, list[str]] = {}
    for site in dict.fromkeys(site for arm in arms for run in arm.runs for site in sites_of(run)):
        asked = [
            site
            if arm.configuration is None
            else site in arm.configuration.sites and site_settings(arm.configuration, site)
            for arm in arms
        ]
        groups.setdefault(_text(asked), []).append(site)
    return [tuple(group) for group in groups.values()]


def unlike(arms: Sequence[Arm], axis: str | None) -> list[str]:
    """Say what else than training and defence differs: figures beside it are no like for like.

    Args:
        arms: that are compared.
        axis: the setting whose effect is the question, which is no reproach.
    """
    known = [arm for arm in arms if arm.configuration is not None]
    shared = [shared_settings(arm.configuration) for arm in known if arm.configuration is not None]
    found = []
    for path in differing(shared):
        if path != axis:
            values = [f"{a.name}: {s.get(path)}" for a, s in zip(known, shared, strict=True)]
            found.append(f"{path} ({'; '.join(values)})")
    for what, seen in (
        ("attacks on record", [_recorded(arm, "attack") for arm in arms]),
        ("size of the gallery", [_recorded(arm, "gallery") for arm in arms]),
    ):
        if len(set(seen)) > 1 and not any(item.startswith("audit.attacks") for item in found):
            values = [f"{a.name}: {v or 'none'}" for a, v in zip(arms, seen, strict=True)]
            found.append(f"{what} ({'; '.join(values)})")
    return found


def notes(arms: Sequence[Arm]) -> list[str]:
    """Say what a reader must know of single runs."""
    found = []
    without = [arm.name for arm in arms if arm.configuration is None]
    if without:
        found.append(
            f"No configuration on record: {', '.join(without)}. Nobody can tell by which model, "
            "data, attacks, budget and defences these figures came about."
        )
    foreign = [arm.name for arm in arms if arm.configuration and not arm.configuration.experiment]
    if foreign:
        found.append(
            f"No experiment on record: {', '.join(foreign)}. The audit was attached to a job of "
            "somebody else's, whose model, data and training are not compared here."
        )
    for arm in arms:
        for run in arm.runs:
            if (missing := not_finished(run.folder)) is not None:
                found.append(f"{run.folder.name}: {missing}")
    twins = Counter(_fingerprint(run) + str(seed_of(run)) for arm in arms for run in arm.runs)
    if any(count > 1 for fingerprint, count in twins.items() if fingerprint):
        found.append("Some runs have the same settings and the same seed: they repeat each other.")
    return found


def _by_configuration(runs: Sequence[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for number, run in enumerate(runs):
        # What is unknown equals nothing.
        known = run.configuration is not None and run.configuration.experiment
        key = _fingerprint(run) if known else f"unknown {number}"
        # A repetition of the same seed would be counted twice: it stays apart.
        while seed_of(run) in [seed_of(other) for other in groups.get(key, [])]:
            key += "+"
        groups.setdefault(key, []).append(run)
    return groups


def _by_name(runs: Sequence[Run], names: Sequence[str]) -> dict[str, list[Run]]:
    if len(names) != len(runs) or not all(name.strip() for name in names):
        raise ValueError(
            f"{len(names)} names for {len(runs)} runs; give one for each, divided by commas"
        )
    groups: dict[str, list[Run]] = {}
    for run, name in zip(runs, names, strict=True):
        groups.setdefault(name.strip(), []).append(run)
    for name, group in groups.items():
        if len({_fingerprint(run) for run in group}) > 1:
            raise ValueError(
                f"the runs named {name!r} differ in more than their seed; give them other names"
            )
    return groups


def _fingerprint(run: Run) -> str:
    """What a run was asked and, as the sites state it, did; without its seed."""
    if run.configuration is None:
        return ""
    sites = {site: site_settings(run.configuration, site) for site in run.configuration.sites}
    # A site's own policy may do more than the job asks.
    done = sorted({(item.site, item.mode or "", item.buffers) for item in run.updates})
    return _text([shared_settings(run.configuration), sites, done])


def _label(runs: Sequence[Run]) -> str:
    """Name runs after their folders, ``noise-seed1`` and ``noise-seed2`` together ``noise``."""
    names = [run.folder.resolve().name for run in runs]
    if len(runs) > 1:
        names = [
            re.sub(rf"[-_. ]*(seed)?[-_. ]*{seed_of(run)}$", "", name) or name
            for name, run in zip(names, runs, strict=True)
        ]
    return names[0]


def _unique(labels: Sequence[str]) -> list[str]:
    """Number those that occur more than once."""
    total, used, unique = Counter(labels), Counter[str](), []
    for label in labels:
        used[label] += 1
        unique.append(label if total[label] == 1 else f"{label} ({used[label]})")
    return unique


def _recorded(arm: Arm, name: str) -> str:
    values = {getattr(record, name) for run in arm.runs for record in run.records}
    return ", ".join(sorted(str(value) for value in values if value is not None))


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)
