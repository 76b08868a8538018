"""What a run looks like in a terminal: a line that follows it, and the table that it ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from gradward.audit import AuditResult, AuditSummary, UpdateAudit
from gradward.audit.result import FILE_NAME as AUDIT_FILE
from gradward.audit.summary import FILE_NAME as SUMMARY_FILE
from gradward.report.audit_table import (
    audit_table,
    how_to_read_audit,
    how_to_read_summary,
    summary_table,
)
from gradward.report.records import FILE_NAME, read_records
from gradward.report.site_folder import page_of, site_folders
from gradward.report.status import not_finished
from gradward.report.table import how_to_read, leakage_table, membership_unknown

console = Console()
messages = Console(stderr=True)


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


class AuditProgress:
    """A bar for each attack of an audit, on stderr; a line each where that is no terminal."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=messages,
            disable=not messages.is_terminal,
        )

    def __enter__(self) -> AuditProgress:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, attack: str, share: float) -> None:
        """Show that ``share`` of an attack's budget is spent."""
        if attack not in self._tasks:
            self._tasks[attack] = self._progress.add_task(attack, total=1.0)
            if not messages.is_terminal:
                click.echo(f"{attack} ...", err=True)
        self._progress.update(self._tasks[attack], completed=share)


class BatchProgress:
    """How many of several updates are finished, on stderr; nothing where that is no terminal."""

    def __init__(self, total: int) -> None:
        self.finished = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=messages,
            disable=not messages.is_terminal,
        )
        self._task = self._progress.add_task("updates", total=total)

    def __enter__(self) -> BatchProgress:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, update: UpdateAudit, finished: int, total: int) -> None:
        """Show that one more update is finished."""
        self.finished = finished
        self._progress.update(self._task, completed=finished)


def show_audit(result: AuditResult, folder: Path) -> None:
    """Print what an audit of one update found and where it is."""
    if any(audit.real.status == "ok" for audit in result.attacks):
        console.print(audit_table(result))
    for line in how_to_read_audit(result):
        console.print(line, highlight=False, markup=False)
    console.print(f"Result      {folder / AUDIT_FILE}", highlight=False, soft_wrap=True)
    console.print(
        f"Pictures    {folder}/<attack> (they may show patients)", highlight=False, soft_wrap=True
    )


def show_summary(summary: AuditSummary, folder: Path) -> None:
    """Print what an audit of several updates found and where it is."""
    if any(update.status == "ok" for update in summary.updates):
        console.print(summary_table(summary))
    for line in how_to_read_summary(summary):
        console.print(line, highlight=False, markup=False)
    console.print(f"Summary     {folder / SUMMARY_FILE}", highlight=False, soft_wrap=True)
    console.print(
        f"Results     {folder}/<update> (pictures may show patients)",
        highlight=False,
        soft_wrap=True,
    )


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
    for job_folder in site_folders(folder):
        if (page := page_of(job_folder)).is_file():
            console.print(f"Site's page {page}", highlight=False, soft_wrap=True)
