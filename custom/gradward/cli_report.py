"""``gradward report``: what people look at, built from what a run left."""

from __future__ import annotations

from pathlib import Path

import click

from gradward.console import show_comparison, show_result
from gradward.report.compare.page import build_comparison
from gradward.report.page import build_report
from gradward.report.site_folder import is_site_folder, site_folders
from gradward.report.site_page import build_site_page


@click.command()
@click.argument(
    "folders",
    metavar="FOLDER...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option("--compare", is_flag=True, help="Set several runs side by side.")
@click.option("--names", help="With --compare: a name for each run, divided by commas.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="With --compare: where the comparison goes; compare/ by default.",
)
def report(folders: tuple[Path, ...], compare: bool, names: str | None, out: Path | None) -> None:
    """Build the report of a run FOLDER that holds leakage.jsonl, and print its table.

    The pages of a simulated run's sites are built as well. FOLDER may also be a site's private
    folder of one job (<private root>/jobs/<job>): then the site's own page is built.

    With --compare, set several runs side by side. Runs that differ only in their seed are taken
    together, or those that have the same name in --names.
    """
    try:
        if compare:
            _compare(folders, names, out or Path("compare"))
            return
        if len(folders) > 1 or names is not None or out is not None:
            raise click.UsageError("several runs, --names and --out belong to --compare")
        if is_site_folder(folders[0].resolve()):
            page = build_site_page(folders[0])
            click.echo(f"Site's page {page} (it shows patients and stays there)")
            return
        build_report(folders[0])
        for job_folder in site_folders(folders[0]):
            build_site_page(job_folder)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    show_result(folders[0])


def _compare(folders: tuple[Path, ...], names: str | None, out: Path) -> None:
    given = None if names is None else names.split(",")
    show_comparison(build_comparison(folders, out, given), out)
