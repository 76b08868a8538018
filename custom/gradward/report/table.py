"""The table that a run ends with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table

from gradward.report.records import CANARY, LeakageRecord
from gradward.report.summary import summarise


def leakage_table(records: Sequence[LeakageRecord]) -> Table:
    """Per site: the round that leaked most, best of its attacks, beside control and prior.

    It fits a terminal of 80 columns.
    """
    table = Table(
        title="Worst round, best of attacks; in brackets the control, for SSIM the prior",
        title_justify="left",
        caption=about_canaries(records),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for heading in ("Site", "Images", "Attack", "Round"):
        table.add_column(heading, no_wrap=True)
    for heading in ("Recovered", "Re-ID", "SSIM"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Scored", no_wrap=True)
    for summary in summarise(records):
        scored = f"{summary.scored} of {summary.attempted}"
        if summary.best is None:
            table.add_row(summary.site, *["-"] * 6, ", ".join(summary.statuses))
            continue
        real, control = summary.best.real, summary.best.control
        table.add_row(
            summary.site,
            str(real.n_images),
            summary.attack,
            str(summary.round),
            f"{show(real.recovered)} ({show(control.recovered if control else None)})",
            f"{show(real.reid)} ({show(control.reid if control else None)})",
            f"{show(real.ssim)} ({show(real.prior_ssim)})",
            scored,
        )
    return table


def about_canaries(records: Sequence[LeakageRecord]) -> str | None:
    """One plain sentence about a canary audit, None where patients' updates were attacked."""
    if not any(record.subject == CANARY for record in records):
        return None
    return (
        "Public canary images were attacked here, no patient's image: the figures tell what the "
        "training pipeline leaks of such images, not what a model has memorised nor who was in the "
        "training, and a site's own images may be easier or harder to rebuild."
    )


def show(value: float | None) -> str:
    """Two decimals, or a dash where there is no value."""
    # Adding 0 turns the -0.0 of a tiny negative value into 0.0.
    return "-" if value is None or math.isnan(value) else f"{round(value, 2) + 0.0:.2f}"


def many(count: int, what: str) -> str:
    """Write a number with what it counts.

    >>> many(1, "try"), many(2, "try"), many(0, "audit")
    ('1 try', '2 tries', '0 audits')
    """
    plural = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{count} {what if count == 1 else plural}"


def how_to_read() -> str:
    """One honest paragraph."""
    return (
        "Recovered: how far the reconstruction goes from the best guess without the update (0) to "
        "the true image (1). Re-ID, re-identified: the share of images whose reconstruction is "
        "nearer to them than to any other of at least 100. Control: the same attack on an update "
        "of other images; only what exceeds it was leaked. Rounds count from 0. A low figure "
        "means: not recovered by these attacks within this budget. It never means: safe."
    )


def membership_unknown() -> str:
    """What to bear in mind where a site could not tell which images made its update."""
    return (
        "Membership in the round is unknown: each reconstruction was set beside the likest of all "
        "images of the site, as was its control. Chance is higher than with known images, and only "
        "what exceeds the control counts."
    )
