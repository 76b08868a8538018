"""What a command tells at its end: a table, how to read it, and where everything is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from gradward.audit import AuditResult, AuditSummary
from gradward.audit.result import FILE_NAME as AUDIT_FILE
from gradward.audit.summary import FILE_NAME as SUMMARY_FILE
from gradward.report.audit_table import (
    audit_table,
    how_to_read_audit,
    how_to_read_summary,
    summary_table,
)
from gradward.report.compare.rows import RunComparison
from gradward.report.compare.tables import comparison_table, warnings
from gradward.report.coverage import audited_sites
from gradward.report.records import FILE_NAME
from gradward.report.run_folder import read_run
from gradward.report.site_folder import page_of, site_folders
from gradward.report.status import not_finished
from gradward.report.table import how_to_read, leakage_table, membership_unknown
from gradward.report.verdict import judge, one_line_each

console = Console()


def show_audit(result: AuditResult, folder: Path) -> None:
    """Print what an audit of one update found and where it is."""
    ran = any(audit.real.status == "ok" for audit in result.attacks)
    if ran:
        console.print(audit_table(result))
    for line in how_to_read_audit(result):
        console.print(line, highlight=False, markup=False)
    console.print(f"Result      {folder / AUDIT_FILE}", highlight=False, soft_wrap=True)
    if ran:
        console.print(
            f"Pictures    {folder}/<attack> (they may show patients)",
            highlight=False,
            soft_wrap=True,
        )


def show_summary(summary: AuditSummary, folder: Path) -> None:
    """Print what an audit of several updates found and where it is."""
    audited = any(update.status == "ok" for update in summary.updates)
    if audited:
        console.print(summary_table(summary))
    for line in how_to_read_summary(summary):
        console.print(line, highlight=False, markup=False)
    console.print(f"Summary     {folder / SUMMARY_FILE}", highlight=False, soft_wrap=True)
    if audited:
        console.print(
            f"Results     {folder}/<update> (pictures may show patients)",
            highlight=False,
            soft_wrap=True,
        )


def show_result(folder: Path) -> None:
    """Print the table of a run folder, the verdict on each site, and where everything is."""
    run = read_run(folder)
    records = run.records
    console.print(leakage_table(records))
    console.print(how_to_read())
    for line in one_line_each(judge(records, audited_sites(run))):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
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


def show_comparison(comparison: RunComparison, folder: Path) -> None:
    """Print what must be known of several runs, their table in short, and where all of it is."""
    for line in warnings(comparison):
        console.print(line, highlight=False, markup=False)
    console.print(comparison_table(comparison))
    swept = comparison.axis or "no single numeric setting in which the runs differ"
    console.print(f"Swept       {swept}", highlight=False, markup=False)
    console.print(f"Comparison  {folder / 'index.html'}", highlight=False, soft_wrap=True)
    console.print(
        f"Tables      {folder}/compare.csv, .json, .md, .tex", highlight=False, soft_wrap=True
    )
