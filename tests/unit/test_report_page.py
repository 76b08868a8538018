"""The leakage report as a file: what it tells, and what it must not hold."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gradward.report.page import build_report
from gradward.report.records import STATUSES
from tests.unit.stored_runs import (
    beside_control,
    configuration_of,
    scored,
    write_demo_run,
    write_large_run,
    write_run,
)

QUIET = [(-0.1, 0.0)] * 3


def text_of(folder: Path) -> str:
    """Return the page's words, without style sheet and marks."""
    page = build_report(folder).read_text(encoding="utf-8")
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", page).replace("&#39;", "'").split())


def test_a_page_holds_no_picture_and_loads_nothing(tmp_path: Path) -> None:
    audit = configuration_of()["audit"] | {"keep_reconstructions": True}
    records = [scored(reason="<script>alert(1)</script>")]
    write_run(tmp_path, records, configuration={"audit": audit})
    (tmp_path / "reconstructions").mkdir()
    (tmp_path / "reconstructions" / "0.png").write_bytes(b"\x89PNG")
    page = build_report(tmp_path).read_text(encoding="utf-8")
    for mark in ("<img", "<image", "http", "data:", "<script", "@import", "<link"):
        assert mark not in page
    assert "This job keeps reconstructions" in page and "0.png" not in page


def test_a_page_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"leakage\.jsonl"):
        build_report(tmp_path)


def test_a_run_in_which_nothing_was_attacked_has_a_page(tmp_path: Path) -> None:
    assert "no record of any attack" in text_of(write_run(tmp_path, []))


def test_records_alone_suffice(tmp_path: Path) -> None:
    """Runs of earlier versions left nothing else."""
    text = text_of(write_run(tmp_path, beside_control(QUIET, QUIET)))
    assert "1 site: 1 shows no more than the controls." in text
    assert "not written down by this run" in text and "No validation accuracy" in text


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    write_demo_run(tmp_path)
    first = build_report(tmp_path).read_bytes()
    assert build_report(tmp_path).read_bytes() == first
    ids = re.findall(rb' id="([^"]+)"', first)
    assert len(ids) == len(set(ids)), "ids of one figure must not catch another's"


def test_the_figures_are_told_in_words_too(tmp_path: Path) -> None:
    page = build_report(write_demo_run(tmp_path)).read_text(encoding="utf-8")
    labels = re.findall(r'<svg class="plot"[^>]*role="img" aria-label="([^"]*)"', page)
    assert len(labels) == page.count('<svg class="plot"') == 7
    assert any(
        "site-1, attack matching" in label and "Recovered: 0.90, 0.92, 0.94" in label
        for label in labels
    )
    assert any("Validation accuracy" in label and "0.30, 0.50, 0.70" in label for label in labels)


def test_gaps_are_told_with_their_reasons(tmp_path: Path) -> None:
    gaps = [
        scored(number=number, status=status, reason=f"why {status}", recovered=None, reid=None)
        for number, status in enumerate(STATUSES[1:])
    ]
    text = text_of(write_run(tmp_path, [*gaps, scored(number=9)]))
    for number, status in enumerate(STATUSES[1:]):
        assert f"1 site-1; round {number} why {status}" in text


def test_a_site_that_the_job_leaves_out_is_named(tmp_path: Path) -> None:
    audit = configuration_of()["audit"] | {"sites": ["site-1"], "every_n_rounds": 2}
    text = text_of(
        write_run(tmp_path, beside_control(QUIET, QUIET), configuration={"audit": audit})
    )
    assert "1 site: 1 shows" in text and "nothing is known of them: site-2, site-3" in text
    assert "Only every 2 rounds" in text


@pytest.mark.parametrize("mode", ["none", None])
def test_an_asked_defence_that_a_site_does_not_state_stands_out(
    tmp_path: Path, mode: str | None
) -> None:
    defence = {"sites": ["site-1"], "kind": "perturbation", "name": "P", "settings": {"mode": "m"}}
    updates = [
        {"site": "site-1", "round": number, "mode": stated, "buffers": "withheld"}
        for number, stated in enumerate(["class", mode])
    ]
    write_run(
        tmp_path,
        beside_control(QUIET, QUIET),
        configuration={"defences": [defence]},
        updates=updates,
    )
    text = text_of(tmp_path)
    assert "1 of 2 updates state no defence, though the job asked for one" in text
    assert "BatchNorm statistics withheld: 2 of 2" in text
    write_run(tmp_path, beside_control(QUIET, QUIET), configuration={}, updates=updates)
    assert "state no defence" not in text_of(tmp_path)


def test_knowledge_that_differs_between_updates_is_not_lost(tmp_path: Path) -> None:
    write_run(tmp_path, [scored(), scored("site-2", knowledge={"labels": "given"})])
    text = text_of(tmp_path)
    assert "matching given or inferred given lacked" in text
    assert "With “or” between them it differed from update to update" in text


def test_the_effort_at_each_site_is_told(tmp_path: Path) -> None:
    records = [scored(evals=1000), scored("site-2", evals=50), scored("site-2", 1, evals=75)]
    text = text_of(write_run(tmp_path, [*records, scored("site-3")]))
    assert "site-1 - 1 1 0 0 0 0 0 1000" in text and "site-2 - 2 2 0 0 0 0 0 50 to 75" in text
    assert "site-3 - 1 1 0 0 0 0 0 -" in text


def test_attacks_are_counted_together_beside_each(tmp_path: Path) -> None:
    records = [scored(images=48, reid=0.06, attack=name) for name in ("batchnorm", "matching")]
    text = text_of(write_run(tmp_path, records))
    assert "site-1 all attacks 1 48 6 of 96" in text
    assert "all attacks 1" not in text_of(write_run(tmp_path, records[:1]))


def test_no_words_call_a_leak_what_the_verdict_calls_luck(tmp_path: Path) -> None:
    text = text_of(write_run(tmp_path, beside_control(QUIET, QUIET)))
    assert "something was leaked" not in text and "may have leaked" in text
    assert "less than one site in 20" in text


def test_the_page_says_where_membership_is_unknown(tmp_path: Path) -> None:
    known = beside_control(QUIET, QUIET)
    assert "Membership in the round" not in text_of(write_run(tmp_path, known))
    unknown = beside_control(QUIET, QUIET, site="site-2", membership="unknown")
    text = text_of(write_run(tmp_path, known + unknown))
    assert text.count("Membership in the round is unknown") == 1


def test_a_canary_audit_says_whose_images_were_attacked(tmp_path: Path) -> None:
    records = [replace(r, subject="canary", canaries=8) for r in beside_control(QUIET, QUIET)]
    text = text_of(write_run(tmp_path, records))
    assert "no patient's image" in text and "memorised" in text
    assert "The server scored 3 of 3" in text and "scored by each site" not in text


def test_a_live_audit_speaks_of_no_canaries(tmp_path: Path) -> None:
    text = text_of(write_run(tmp_path, beside_control(QUIET, QUIET)))
    assert "anary" not in text and "The site scored 3 of 3" in text


def test_a_run_that_was_cut_short_says_what_is_missing(tmp_path: Path) -> None:
    write_run(tmp_path, [scored()])
    status = {"phase": "training", "round": 1, "rounds": 4, "audits_open": 3}
    file = tmp_path / "audit_status.json"
    file.write_text(json.dumps(status))
    assert "in round 1 (2 of 4, as rounds count from 0), and 3 audits were open." in text_of(
        tmp_path
    )
    file.write_text(json.dumps(status | {"audits_open": 1}))
    assert "and 1 audit was open. It is not on record." in text_of(tmp_path)
    file.write_text(json.dumps(status | {"phase": "finished"}))
    assert "audits were open" not in text_of(tmp_path)


def test_a_long_run_of_many_sites_stays_small_and_quick(tmp_path: Path) -> None:
    """20 sites, 50 rounds, 3 attacks with controls: at most 20 s of CPU and 10 MB."""
    write_large_run(tmp_path)
    started = time.process_time()
    page = build_report(tmp_path)
    assert time.process_time() - started <= 20
    assert page.stat().st_size <= 10e6
    assert page.read_text(encoding="utf-8").count("<td>control<td>ok") == 3000
