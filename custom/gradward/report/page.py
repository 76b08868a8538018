"""The leakage report: one self-contained HTML page about a run, without a picture of anybody."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gradward.report import figures, verdict
from gradward.report.coverage import (
    STATUS_MEANINGS,
    audited_sites,
    coverage_of,
    gaps_of,
    knowledge_of,
    sites_of,
)
from gradward.report.defence_table import defences_of
from gradward.report.evidence import Try
from gradward.report.plots import styled
from gradward.report.records import CANARY, FILE_NAME, STATUSES
from gradward.report.run_folder import Run, ScalarRecord, read_run
from gradward.report.status import not_finished
from gradward.report.table import about_canaries, show
from gradward.report.verdict import Verdict, in_order, judge


@dataclass(frozen=True)
class SiteFigures:
    """A site's verdict with its figures: all on one scale, and each attack over the rounds."""

    verdict: Verdict
    scale: Markup | None
    courses: tuple[tuple[str, Markup], ...]


def environment() -> jinja2.Environment:
    """Return what all report pages are rendered with."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("gradward.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters["show"] = show
    return found


def build_report(run_folder: Path) -> Path:
    """Write ``report/index.html`` from what is in ``run_folder`` and return its path.

    Args:
        run_folder: of the server, of a simulation or of a downloaded job; only ``leakage.jsonl``
            has to be there.

    Raises:
        FileNotFoundError: there are no records.
        ValueError: a file cannot be read; names file and line.
    """
    if not (run_folder / FILE_NAME).is_file():
        raise FileNotFoundError(f"there is no {FILE_NAME} in {run_folder}")
    page = environment().get_template("index.html").render(_context(read_run(run_folder)))
    target = run_folder / "report" / "index.html"
    target.parent.mkdir(exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def _context(run: Run) -> dict[str, Any]:
    configuration, records = run.configuration, run.records
    audited = audited_sites(run)
    verdicts = judge(records, audited)
    tries = [item for found in verdicts for item in found.tries]
    rounds = range(1 + max((record.round for record in records), default=0))
    left = figures.lowest(tries)
    with styled():
        sites = [_draw(found, rounds, left) for found in verdicts]
        accuracy = figures.accuracy_course(run.scalars, rounds)
        worst = figures.worst_course(tries, rounds, left) if tries else None
    return {
        "job": _job(run),
        "configuration": configuration,
        "subjects": sorted({record.subject for record in records}),
        "canary": any(record.subject == CANARY for record in records),
        "about_canaries": about_canaries(records),
        "not_finished": not_finished(run.folder),
        "rounds": len(rounds) if records else 0,
        "in_short": verdict.in_short(verdicts) if verdicts else "There is no record of any attack.",
        "levels": [(level, verdict.MEANINGS[level]) for level in verdict.LEVELS],
        "words": verdict.WORDS,
        "luck": verdict.LUCK,
        "visible": verdict.VISIBLE,
        "scatter": verdict.SCATTER,
        "sites": sites,
        "left": left,
        "accuracy": accuracy,
        "worst": worst,
        "utility": _utility(run.scalars, verdicts),
        "defences": defences_of(run),
        "coverage": coverage_of(run),
        "statuses": STATUSES,
        "status_meanings": STATUS_MEANINGS,
        "gaps": gaps_of(records),
        "not_audited": sorted(set(sites_of(run)) - set(audited), key=in_order),
        "knowledge": knowledge_of(records),
        "records": sorted(records, key=lambda record: (in_order(record.site), record.key)),
    }


def _job(run: Run) -> str:
    if run.configuration:
        return run.configuration.job
    return run.records[0].job if run.records else run.folder.name


def _draw(found: Verdict, rounds: range, left: float) -> SiteFigures:
    by_attack: dict[str, list[Try]] = defaultdict(list)
    for item in found.tries:
        by_attack[item.record.attack].append(item)
    courses = tuple(
        (attack, figures.course(found.site, attack, tries, rounds, left))
        for attack, tries in sorted(by_attack.items())
    )
    scale = figures.scale(found.site, found.tries, left) if found.tries else None
    return SiteFigures(found, scale, courses)


def _utility(
    scalars: Sequence[ScalarRecord], verdicts: Sequence[Verdict]
) -> list[tuple[Verdict, float | None, float | None, float | None]]:
    """Return each site's verdict with its first and last accuracy and what was recovered most."""
    found = []
    for item in sorted(verdicts, key=lambda v: in_order(v.site)):
        values = {
            s.step: s.value for s in scalars if (s.site, s.tag) == (item.site, figures.ACCURACY)
        }
        steps = sorted(values)
        most = max((e.recovered for e in item.evidence), default=None)
        first, last = (values[steps[0]], values[steps[-1]]) if steps else (None, None)
        found.append((item, first, last, most))
    return found
