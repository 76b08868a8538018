"""``gradward report``: what people look at, built from what a run left."""

from __future__ import annotations

from pathlib import Path

import click

from gradward.console import show_result
from gradward.report.page import build_report


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(folder: Path) -> None:
    """Build the report of a run FOLDER that holds leakage.jsonl, and print its table."""
    try:
        build_report(folder)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    show_result(folder)
