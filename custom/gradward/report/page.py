"""One self-contained HTML page about a run. It holds no picture of anybody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from gradward.report.records import FILE_NAME, LeakageRecord, read_records, worst_by_site
from gradward.report.table import how_to_read, matching_control, show


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
        verdicts=[_verdict(site, worst, records) for site, worst in worst_by_site(records).items()],
        records=sorted(records, key=lambda record: record.key),
        knowledge={item.attack: item.knowledge for item in records if item.knowledge},
        how_to_read=how_to_read(),
    )
    target = run_folder / "report" / "index.html"
    target.parent.mkdir(exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def _verdict(
    site: str, worst: LeakageRecord | None, records: Sequence[LeakageRecord]
) -> dict[str, str]:
    """One plain sentence about a site."""
    if worst is None or worst.recovered is None:
        return {"site": site, "level": "unknown", "text": "Nothing was scored; see the records."}
    control = matching_control(worst, records)
    beside = control.recovered if control and control.recovered is not None else 0.0
    identified = (worst.reid or 0.0) > (control.reid if control and control.reid else 0.0)
    if identified and worst.recovered > beside:
        level, words = "leaks", "Images could be recognised in what the server rebuilt"
    elif worst.recovered > max(beside, 0.0):
        level, words = "partly", "The server learned something, but recognised no image"
    else:
        level, words = "none", "Not recovered by these attacks within this budget"
    text = (
        f"{words}: {worst.attack}, round {worst.round}, recovered {show(worst.recovered)} "
        f"(control {show(control.recovered if control else None)}), "
        f"re-identified {show(worst.reid)} in a gallery of {worst.gallery}."
    )
    return {"site": site, "level": level, "text": text}
