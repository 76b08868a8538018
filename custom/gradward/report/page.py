"""One self-contained HTML page about a run. It holds no picture of anybody."""

from __future__ import annotations

from pathlib import Path

import jinja2

from gradward.report.records import CANARY, FILE_NAME, read_records
from gradward.report.status import not_finished
from gradward.report.summary import SiteSummary, summarise
from gradward.report.table import about_canaries, how_to_read, membership_unknown, show


def build_report(run_folder: Path) -> Path:
    """Write ``report/index.html`` from ``leakage.jsonl`` in ``run_folder`` and return its path.

    Raises:
        FileNotFoundError: there are no records.
        ValueError: a record cannot be read; names the line.
    """
    file = run_folder / FILE_NAME
    if not file.is_file():
        raise FileNotFoundError(f"there is no {FILE_NAME} in {run_folder}")
    records = list(read_records(file))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradward.report"), autoescape=True, trim_blocks=True
    )
    environment.filters["show"] = show
    page = environment.get_template("index.html").render(
        job=records[0].job if records else "",
        verdicts=[_verdict(summary) for summary in summarise(records)],
        records=sorted(records, key=lambda record: record.key),
        knowledge={item.attack: item.knowledge for item in records if item.knowledge},
        not_finished=not_finished(run_folder),
        about_canaries=about_canaries(records),
        how_to_read=how_to_read(),
    )
    target = run_folder / "report" / "index.html"
    target.parent.mkdir(exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def _verdict(summary: SiteSummary) -> dict[str, str]:
    """One plain sentence about a site."""
    if summary.best is None:
        return {"site": summary.site, "level": "unknown", "text": "Nothing was scored."}
    real, control = summary.best.real, summary.best.control
    # Without a control nothing can be said to exceed it; the prior's own score stands in.
    beside = control or summary.best.prior
    if real.reid > beside.reid and real.recovered > max(beside.recovered, 0.0):
        level, words = "leaks", "Images could be recognised in what the server rebuilt"
    elif real.recovered > max(beside.recovered, 0.0) or real.reid > beside.reid:
        level, words = "partly", "The attack did better on the update than on its control"
    else:
        level, words = "none", "Not recovered by these attacks within this budget"
    scorer = "The server" if summary.subject == CANARY else "The site"
    text = (
        f"{words}: round {summary.round}, recovered {show(real.recovered)} "
        f"(control {show(control.recovered if control else None)}), re-identified "
        f"{show(real.reid)} (control {show(control.reid if control else None)}) in a gallery of "
        f"{real.gallery}. {scorer} scored {summary.scored} of {summary.attempted} attacks."
    )
    if summary.membership == "unknown":
        text += f" {membership_unknown()}"
    return {"site": summary.site, "level": level, "text": text}
