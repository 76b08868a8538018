"""What a run looks like in a terminal: a line that follows it, and the table that it ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gradward.report.records import FILE_NAME, read_records
from gradward.report.status import not_finished
from gradward.report.table import how_to_read, leakage_table, membership_unknown

console = Console()


class RunProgress:
    """One line that follows a run: phase, round, sites heard, audits open."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._last = ""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(f"{job}: starting", total=None)

    def __enter__(self) -> RunProgress:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, status: dict[str, Any]) -> None:
        """Show the entries of the server's status file."""
        if not status:
            return
        line = f"{self._job}: {status['phase']}"
        if "round" in status:
            line += (
                f", round {status['round'] + 1} of {status['rounds']}, "
                f"{status['sites_heard']} of {status['sites']} sites heard, "
                f"{status['audits_open']} audits open"
            )
            done = status["round"] + status["sites_heard"] / max(status["sites"], 1)
            self._progress.update(self._task, total=status["rounds"], completed=done)
        self._progress.update(self._task, description=line)
        if line != self._last and not console.is_terminal:
            click.echo(line)
        self._last = line


def show_result(folder: Path) -> None:
    """Print the table of a run folder and where everything is."""
    records = list(read_records(folder / FILE_NAME))
    console.print(leakage_table(records))
    console.print(how_to_read())
    if (missing := not_finished(folder)) is not None:
        console.print(missing)
    if any(record.membership == "unknown" for record in records):
        console.print(membership_unknown())
    console.print(f"Records     {folder / FILE_NAME}", highlight=False, soft_wrap=True)
    console.print(
        f"Report      {folder / 'report' / 'index.html'}", highlight=False, soft_wrap=True
    )
    console.print(f"TensorBoard tensorboard --logdir {folder / 'tb_events'}", highlight=False)
    private = folder / "workspace.private"
    if private.is_dir():
        console.print(
            f"Pictures    {private}/<site>/jobs/*/pictures (they show patients and stay there)",
            highlight=False,
            soft_wrap=True,
        )
