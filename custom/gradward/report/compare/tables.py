"""A comparison as CSV, JSON, Markdown and LaTeX: the same numbers in each."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from gradward.report.compare.measures import LAST_ROUNDS, Estimate
from gradward.report.compare.rows import Row, RunComparison
from gradward.report.table import show

SCHEMA = 1
DIGITS = 4

HEADINGS = (
    "Run",
    "Sites",
    "Defence",
    "Accuracy",
    "Recovered (control)",
    "beyond",
    "Re-ID (control)",
    "beyond",
    "RDLV (control)",
    "Images",
    "Rounds × seeds",
    "Scored",
)
TEXT_COLUMNS = 3

HOW_COUNTED = (
    "Of each update the best of all attacks counts, for the control likewise. Figures are means "
    "over sites, rounds and seeds, ± their standard deviation, which is a spread and no confidence "
    "interval. Beyond: max(real, 0) - max(control, 0), update by update; 0 is the best guess "
    "without the update. Accuracy: of the global model, which all sites of a run share, on the "
    f"sites' validation images, in the last {LAST_ROUNDS} rounds without the untrained first. "
    "Scored: attacks that a site scored, of those mounted; what was not scored is not safe."
)


def row_values(row: Row) -> dict[str, str | int | float | None]:
    """A row's numbers under stable names, rounded; None where there is no value."""
    values: dict[str, str | int | float | None] = {
        "run": row.arm,
        "sites": ", ".join(row.sites),
        "subject": row.subject,
        "defence": row.defence,
        "trained_on": ", ".join(row.trained_on) or None,
        "swept_value": row.value,
        "seeds": row.seeds,
        "rounds": row.rounds,
        "images_least": row.images[0] if row.images else None,
        "images_most": row.images[1] if row.images else None,
        "gallery": row.gallery,
        "attacks_mounted": row.attempted,
        "attacks_scored": row.scored,
        **_estimate("accuracy", row.accuracy),
    }
    for name, measured in row.measured.items():
        values |= _estimate(name, measured.real)
        values |= _estimate(f"{name}_control", measured.control)
        values |= _estimate(f"{name}_beyond", measured.beyond)
    worst = row.worst
    control = None if worst is None else worst.best.control
    return {
        **values,
        "worst_site": worst.site if worst else None,
        "worst_round": worst.round if worst else None,
        "worst_seed": worst.seed if worst else None,
        "worst_recovered": _number(worst.best.real.recovered) if worst else None,
        "worst_recovered_control": _number(control.recovered) if control else None,
        "worst_reid": _number(worst.best.real.reid) if worst else None,
        "worst_reid_control": _number(control.reid) if control else None,
    }


def as_csv(comparison: RunComparison) -> str:
    """One line a row; a value that there is not is empty."""
    rows = [row_values(row) for row in comparison.rows]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_json(comparison: RunComparison) -> str:
    """The rows with their settings and what must be known of them."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "rows": [row_values(row) for row in comparison.rows],
        "swept_setting": comparison.axis,
        "equal": comparison.equal,
        "different": [
            {path: row.settings.get(path) for path in comparison.different}
            for row in comparison.rows
        ],
        "unlike": comparison.unlike,
        "notes": comparison.notes,
        "how_counted": HOW_COUNTED,
    }
    return json.dumps(document, indent=2, default=str) + "\n"


def cells(row: Row) -> list[str]:
    """A row for people, by :data:`HEADINGS`."""
    recovered, reid, rdlv = (row.measured[name] for name in ("recovered", "reid", "rdlv"))
    return [
        row.arm,
        ", ".join(row.sites),
        row.defence or "unknown",
        _shown(row.accuracy),
        f"{_shown(recovered.real)} ({_shown(recovered.control)})",
        _shown(recovered.beyond),
        f"{_shown(reid.real)} ({_shown(reid.control)})",
        _shown(reid.beyond),
        f"{_shown(rdlv.real)} ({_shown(rdlv.control)})",
        "-" if row.images is None else "-".join(map(str, sorted(set(row.images)))),
        f"{row.rounds} × {row.seeds}",
        f"{row.scored} of {row.attempted}",
    ]


def comparison_table(comparison: RunComparison) -> Table:
    """What fits a terminal: accuracy and leakage beyond control."""
    table = Table(
        title="Mean ± standard deviation; leakage beyond control",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for heading in ("Run", "Sites"):
        table.add_column(heading, overflow="fold")
    for heading in ("Accuracy", "Recovered", "Re-ID", "Scored"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(
            escape(row.arm),
            escape(", ".join(row.sites)),
            _shown(row.accuracy),
            _shown(row.measured["recovered"].beyond),
            _shown(row.measured["reid"].beyond),
            f"{row.scored} of {row.attempted}",
        )
    return table


def as_markdown(comparison: RunComparison) -> str:
    """A table with its warnings above and how to read it below."""
    lines = [f"**{line}**\n" for line in map(_escape_markdown, warnings(comparison))]
    lines += [_markdown_row(HEADINGS)]
    lines += ["|" + " --- |" * TEXT_COLUMNS + " ---: |" * (len(HEADINGS) - TEXT_COLUMNS)]
    lines += [_markdown_row(cells(row)) for row in comparison.rows]
    return "\n".join([*lines, "", _escape_markdown(HOW_COUNTED)]) + "\n"


def as_latex(comparison: RunComparison) -> str:
    """A ``table*`` for the package booktabs; its warnings stand in the caption."""
    body = [" & ".join(map(_escape_latex, cells(row))) + r" \\" for row in comparison.rows]
    caption = " ".join([*warnings(comparison), HOW_COUNTED])
    columns = "l" * TEXT_COLUMNS + "r" * (len(HEADINGS) - TEXT_COLUMNS)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table*}",
            r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_escape_latex(caption)}}}",
            r"\label{tab:gradward}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(_escape_latex, HEADINGS)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def warnings(comparison: RunComparison) -> list[str]:
    """What must be read before any figure."""
    found = []
    if comparison.unlike:
        found.append(
            "These runs are not like for like. Beside training and defence they differ in "
            + ", ".join(comparison.unlike)
            + "."
        )
    return [*found, *comparison.notes]


def _estimate(name: str, value: Estimate) -> dict[str, str | int | float | None]:
    return {name: _number(value.mean), f"{name}_sd": _number(value.deviation)}


def _number(value: float) -> float | None:
    # Adding 0 turns -0.0 into 0.0.
    return None if math.isnan(value) else round(value, DIGITS) + 0.0


def _shown(value: Estimate) -> str:
    if math.isnan(value.deviation):
        return show(value.mean)
    return f"{show(value.mean)} ± {show(value.deviation)}"


def _markdown_row(values: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(map(_escape_markdown, values)) + " |"


def _escape_markdown(text: str) -> str:
    escaped = "".join(f"\\{char}" if char in "\\|*`[]_" else char for char in text)
    return " ".join(escaped.replace("<", "&lt;").split())


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def _escape_latex(text: str) -> str:
    return " ".join("".join(_LATEX.get(char, char) for char in text).split())
