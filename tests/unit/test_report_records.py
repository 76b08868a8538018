"""Records of a run and the table made of them."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from gradward.report.records import LeakageLog, LeakageRecord, read_records
from gradward.report.summary import summarise
from gradward.report.table import leakage_table

RECORD = LeakageRecord(
    job="j",
    seed=1,
    site="site-1",
    round=0,
    attack="batchnorm",
    control=False,
    status="ok",
    n_images=1,
    ssim=0.9,
    prior_ssim=0.3,
    recovered=0.85,
    reid=1.0,
    rank=1.0,
    gallery=100,
    psnr=20.0,
    mse=0.01,
    rdlv=2.0,
    leakage=0.6,
    prior={
        "n_images": 1,
        "ssim": 0.3,
        "prior_ssim": 0.3,
        "psnr": 10.0,
        "mse": 0.1,
        "rdlv": 0.0,
        "recovered": 0.0,
        "reid": 0.0,
        "rank": 50.0,
        "gallery": 100,
        "leakage": 0.0,
    },
)


def test_each_key_is_written_once_also_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "leakage.jsonl"
    assert LeakageLog(file).append(RECORD)
    again = LeakageLog(file)
    assert not again.append(replace(RECORD, recovered=0.1))
    assert again.append(replace(RECORD, control=True, recovered=-0.2))
    assert [record.recovered for record in read_records(file)] == [0.85, -0.2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "leakage.jsonl"
    LeakageLog(file).append(RECORD)
    with file.open("a") as stream:
        stream.write('{"schema": 1, "site": "x"}\n')
    with pytest.raises(ValueError, match="line 2"):
        list(read_records(file))


def test_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="fine"):
        replace(RECORD, status="fine")


def test_worst_round_is_the_most_recognised_then_the_most_recovered() -> None:
    blurred = replace(RECORD, round=1, reid=0.0, recovered=0.9)
    control = replace(RECORD, round=2, control=True, recovered=1.0)
    absent = replace(RECORD, site="site-2", status="absent", recovered=None, reid=None)
    first, second = summarise([blurred, RECORD, control, absent])
    assert first.round == 0 and first.best is not None and first.best.real.recovered == 0.85
    assert second.best is None and second.statuses == ("absent",)


def test_best_of_attacks_raises_the_control_as_well() -> None:
    """A control may not be hidden by showing only that of the attack which did best."""
    lucky_control = replace(RECORD, attack="matching", control=True, recovered=0.6, reid=1.0)
    records = [
        RECORD,
        replace(RECORD, control=True, recovered=-0.2, reid=0.0),
        replace(RECORD, attack="matching", recovered=0.1, reid=0.0),
        lucky_control,
    ]
    (summary,) = summarise(records)
    assert summary.attack == "batchnorm" and summary.best is not None
    assert summary.best.real.recovered == 0.85
    assert summary.best.control is not None and summary.best.control.recovered == 0.6
    without = summarise(records[:-1])[0].best
    assert without is not None and without.control is None, "one attack has none"


def test_table_sets_the_control_beside_the_leak() -> None:
    control = replace(RECORD, control=True, recovered=-0.21, reid=0.0)
    absent = replace(RECORD, site="site-2", status="absent", recovered=None)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(leakage_table([RECORD, control, absent]))
    text = console.export_text()
    assert "0.85 (-0.21)" in text and "absent" in text and "…" not in text


def test_records_of_the_first_schema_are_still_read(tmp_path: Path) -> None:
    """They had no membership, since every site knew which images made its update."""
    file = tmp_path / "leakage.jsonl"
    for record in (RECORD, replace(RECORD, round=1, status="refused")):
        old = asdict(record) | {"schema": 1}
        del old["membership"]
        with file.open("a") as stream:
            stream.write(json.dumps(old) + "\n")
    assert [record.membership for record in read_records(file)] == ["known", None]
    file.write_text(json.dumps(asdict(RECORD) | {"schema": 3}) + "\n")
    with pytest.raises(ValueError, match="schema"):
        list(read_records(file))


def test_live_and_canary_of_a_site_are_summed_up_apart() -> None:
    worse = replace(RECORD, subject="canary", round=1, recovered=0.9)
    found = {(item.subject, item.round, item.attempted) for item in summarise([RECORD, worse])}
    assert found == {("live", 0, 1), ("canary", 1, 1)}


def test_the_table_says_whose_images_a_canary_audit_attacked() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(leakage_table([replace(RECORD, subject="canary")]))
    text = " ".join(console.export_text().split())
    assert "no patient's" in text and "memorised" in text
