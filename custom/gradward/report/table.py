"""The table that a run ends with."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from gradward.report.records import LeakageRecord, worst_by_site


def matching_control(
    record: LeakageRecord, records: Sequence[LeakageRecord]
) -> LeakageRecord | None:
    """The control of a real record: same site, round, attack and seed."""
    for other in records:
        if other.control and other.key == (*record.key[:3], True, record.seed):
            return other
    return None


def leakage_table(records: Sequence[LeakageRecord]) -> Table:
    """Per site: the worst leakage over all rounds and attacks, beside its control and prior.

    It fits a terminal of 80 columns.
    """
    table = Table(
        title="Worst leakage of each site (in brackets: control; prior for SSIM)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for heading in ("Site", "Images", "Attack", "Round"):
        table.add_column(heading, no_wrap=True)
    for heading in ("Recovered", "Re-ID", "SSIM"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Scored", no_wrap=True)
    for site, worst in worst_by_site(records).items():
        own = [record for record in records if record.site == site and not record.control]
        if worst is None:
            reasons = ", ".join(sorted({record.status for record in own}))
            table.add_row(site, "-", "-", "-", "-", "-", "-", reasons)
            continue
        control = matching_control(worst, records)
        table.add_row(
            site,
            str(worst.n_images),
            worst.attack,
            str(worst.round),
            f"{show(worst.recovered)} ({show(control.recovered if control else None)})",
            f"{show(worst.reid)} ({show(control.reid if control else None)})",
            f"{show(worst.ssim)} ({show(worst.prior_ssim)})",
            f"{sum(record.status == 'ok' for record in own)} of {len(own)}",
        )
    return table


def show(value: float | None) -> str:
    """Two decimals, or a dash where there is no value."""
    # Adding 0 turns the -0.0 of a tiny negative value into 0.0.
    return "-" if value is None else f"{round(value, 2) + 0.0:.2f}"


def how_to_read() -> str:
    """One honest paragraph."""
    return (
        "Recovered: how far the reconstruction goes from the best guess without the update (0) to "
        "the true image (1). Re-ID, re-identified: the share of images whose reconstruction is "
        "nearer to them than to any other of at least 100. Control: the same attack on an update "
        "of other images; only what exceeds it was leaked. A low figure means: not recovered by "
        "these attacks within this budget. It never means: safe."
    )
