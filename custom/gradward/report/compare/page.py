"""Writes a comparison: one self-contained page, its plots as files, its table in four formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from gradward.report.compare.plots import draw, row_name
from gradward.report.compare.rows import RunComparison, compare_runs
from gradward.report.compare.tables import (
    HEADINGS,
    HOW_COUNTED,
    TEXT_COLUMNS,
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    cells,
    warnings,
)
from gradward.report.page import environment
from gradward.report.plots import styled, to_svg
from gradward.report.records import FILE_NAME
from gradward.report.run_folder import read_run
from gradward.report.table import how_to_read

DOTS_PER_INCH = 200


def build_comparison(
    folders: Sequence[Path], target: Path, names: Sequence[str] | None = None
) -> RunComparison:
    """Compare runs and write ``index.html``, ``compare.*`` and the plots into ``target``.

    Args:
        folders: run folders that hold ``leakage.jsonl``; without the files beside it, which older
            runs do not have, there are no settings or no accuracy.
        target: folder, made where it is missing; an earlier comparison in it is replaced.
        names: one for each folder; runs of one name are repetitions of one setting.

    Raises:
        FileNotFoundError: a folder has no records; names it.
        ValueError: a file cannot be read, or the names do not fit.
    """
    for folder in folders:
        if not (folder / FILE_NAME).is_file():
            raise FileNotFoundError(f"there is no {FILE_NAME} in {folder}")
    comparison = compare_runs([read_run(folder) for folder in folders], names)
    target.mkdir(parents=True, exist_ok=True)
    pictures = []
    # Journals refuse fonts of type 3.
    with styled(), mpl.rc_context({"pdf.fonttype": 42}):
        for name, plot in draw(comparison).items():
            for kind in ("png", "pdf"):
                plot.figure.savefig(
                    target / f"{name}.{kind}",
                    dpi=DOTS_PER_INCH,
                    transparent=False,
                    metadata={"CreationDate": None} if kind == "pdf" else None,
                )
            svg = to_svg(plot.figure, plot.description)
            pictures.append({"name": name, "svg": svg, "caption": plot.caption})
    for kind, text in (
        ("csv", as_csv(comparison)),
        ("json", as_json(comparison)),
        ("md", as_markdown(comparison)),
        ("tex", as_latex(comparison)),
    ):
        (target / f"compare.{kind}").write_text(text, encoding="utf-8")
    page = _render(comparison, pictures)
    (target / "index.html").write_text(page, encoding="utf-8")
    return comparison


def _render(comparison: RunComparison, pictures: Sequence[dict[str, str]]) -> str:
    return (
        environment()
        .get_template("compare.html")
        .render(
            comparison=comparison,
            warnings=warnings(comparison),
            pictures=pictures,
            headings=HEADINGS,
            text_columns=TEXT_COLUMNS,
            rows=[cells(row) for row in comparison.rows],
            row_name=row_name,
            how_counted=HOW_COUNTED,
            how_to_read=how_to_read(),
        )
    )
