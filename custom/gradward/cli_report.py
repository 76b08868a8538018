"""``gradward report``: what people look at, built from what a run left."""

from __future__ import annotations

from pathlib import Path

import click

from gradward.console import show_result
from gradward.report.page import build_report
from gradward.report.site_folder import is_site_folder, site_folders
from gradward.report.site_page import build_site_page


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(folder: Path) -> None:
    """Build the report of a run FOLDER that holds leakage.jsonl, and print its table.

    The pages of a simulated run's sites are built as well. FOLDER may also be a site's private
    folder of one job (<private root>/jobs/<job>): then the site's own page is built.
    """
    try:
        if is_site_folder(folder.resolve()):
            page = build_site_page(folder)
            click.echo(f"Site's page {page} (it shows patients and stays there)")
            return
        build_report(folder)
        for job_folder in site_folders(folder):
            build_site_page(job_folder)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    show_result(folder)
