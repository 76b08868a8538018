"""The rows of a comparison: one for each setting and each group of sites that it treats alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradward.report.compare.arms import Arm, arms_of, groups_of_sites, notes, unlike
from gradward.report.compare.measures import (
    MEASURES,
    Estimate,
    Measured,
    Observation,
    accuracy,
    measure,
    observations,
    worst,
)
from gradward.report.compare.settings import (
    Settings,
    describe_defence,
    differing,
    sites_of,
    swept_setting,
)
from gradward.report.run_folder import Run
from gradward.report.table import about_canaries, membership_unknown


@dataclass(frozen=True)
class Row:
    """What was found about some sites under one setting.

    Attributes:
        arm: name of the setting.
        sites: names of the sites.
        subject: which of their updates were attacked, see ``LeakageRecord``.
        settings: all that the job asked of them, flat; empty where that is unknown.
        defence: the defences that the job asked for; None where that is unknown.
        trained_on: what the sites state that their updates were trained on.
        seeds, rounds: numbers of different ones on record.
        images: least and greatest number of images behind an update; None where nothing is scored.
        gallery: least number of pictures in a gallery; None likewise.
        scored, attempted: attacks, controls not counted.
        accuracy: of the global model, which all sites of a run share.
        measured: each of :data:`MEASURES`, best of attacks.
        worst: the update that gave away most; None where nothing was scored.
        value: of the swept setting; None in a baseline without it, or where nothing was swept.
    """

    arm: str
    sites: tuple[str, ...]
    subject: str
    settings: Settings
    defence: str | None
    trained_on: tuple[str, ...]
    seeds: int
    rounds: int
    images: tuple[int, int] | None
    gallery: int | None
    scored: int
    attempted: int
    accuracy: Estimate
    measured: dict[str, Measured]
    worst: Observation | None
    value: float | None = None


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side.

    Attributes:
        arms: the settings that were compared.
        rows: in the order of the sites' groups, within them of the arms.
        axis: the one numeric setting in which the arms differ, or None.
        equal: settings that all rows have in common.
        different: paths of those that differ.
        unlike: what makes the rows no like for like; empty where all is well.
        notes: further sentences that a reader must know.
    """

    arms: tuple[Arm, ...]
    rows: tuple[Row, ...]
    axis: str | None
    equal: Settings
    different: tuple[str, ...]
    unlike: tuple[str, ...]
    notes: tuple[str, ...]


def compare_runs(runs: Sequence[Run], names: Sequence[str] | None = None) -> RunComparison:
    """Set runs side by side.

    Runs that differ only in their seed are one arm. Sites that are asked the same in every run are
    one group, so that a site's row under one defence stands beside the same site's under another.

    Args:
        runs: at least one; the sites of a single run may have different defences.
        names: one for each run, see :func:`~gradward.report.compare.arms.arms_of`.

    Raises:
        ValueError: a run has no records, or the names do not fit.
    """
    for run in runs:
        if not run.records:
            raise ValueError(f"{run.folder} holds no leakage records; compare finished runs")
    arms = arms_of(runs, names)
    groups = groups_of_sites(arms)
    known = [arm for arm in arms if arm.configuration is not None]
    axis = swept_setting([[arm.settings(group[0]) for arm in known] for group in groups])
    rows = [row for group in groups for arm in arms for row in _rows(arm, group, axis)]
    settings = [row.settings for row in rows if row.settings]
    different = differing(settings)
    equal = {path: value for path, value in (settings or [{}])[0].items() if path not in different}
    return RunComparison(
        arms=tuple(arms),
        rows=tuple(rows),
        axis=axis,
        equal=equal,
        different=tuple(different),
        unlike=tuple(unlike(arms, axis)),
        notes=(*notes(arms), *_about_records(runs)),
    )


def _rows(arm: Arm, group: Sequence[str], axis: str | None) -> list[Row]:
    there = tuple(site for site in group if any(site in sites_of(run) for run in arm.runs))
    subjects = {item.subject for run in arm.runs for item in run.records if item.site in there}
    # Sites that nobody audited have no row.
    return [_row(arm, there, subject, axis) for subject in sorted(subjects)]


def _row(arm: Arm, sites: tuple[str, ...], subject: str, axis: str | None) -> Row:
    by_run = [
        [item for item in run.records if item.site in sites and item.subject == subject]
        for run in arm.runs
    ]
    records = [record for own in by_run for record in own]
    seen = [item for own in by_run for item in observations(own)]
    scored = [record for record in records if not record.control and record.status == "ok"]
    images = [record.n_images for record in scored if record.n_images is not None]
    galleries = [record.gallery for record in scored if record.gallery is not None]
    settings = arm.settings(sites[0])
    asked = arm.configuration
    stated = {item.mode for run in arm.runs for item in run.updates if item.site in sites}
    return Row(
        arm=arm.name,
        sites=sites,
        subject=subject,
        settings=settings,
        defence=None if asked is None else describe_defence(asked, sites[0]),
        trained_on=tuple(sorted(mode for mode in stated if mode is not None)),
        seeds=len(arm.runs),
        rounds=len({item.round for item in seen}),
        images=(min(images), max(images)) if images else None,
        gallery=min(galleries, default=None),
        scored=len(scored),
        attempted=sum(not record.control for record in records),
        accuracy=accuracy(arm.runs),
        measured={name: measure(name, seen) for name in MEASURES},
        worst=worst(seen),
        value=None if axis is None else settings.get(axis),
    )


def _about_records(runs: Sequence[Run]) -> list[str]:
    records = [record for run in runs for record in run.records]
    found = [about_canaries(records)]
    if any(record.membership == "unknown" for record in records):
        found.append(membership_unknown())
    return [line for line in found if line is not None]
