"""What readers are told about a run's folder, whole, cut short or broken."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gradward.report.records import LeakageRecord
from gradward.report.run_folder import Defence, ScalarRecord, UpdateRecord, read_run

RECORD = LeakageRecord("job", 7, "site-1", 0, "batchnorm", control=False, status="ok")
CONFIGURATION: dict[str, Any] = {
    "schema": 1,
    "job": "quickstart",
    "rounds": 3,
    "sites": ["site-1", "site-2"],
    "experiment": {"model": "bn_cnn", "seed": 7},
    "audit": {"subject": "live"},
    "defences": [
        {"sites": ["site-1"], "kind": "guard", "name": "PerturbationGuard", "settings": {}},
        {"sites": None, "kind": "update_filter", "name": "UpdateNoise", "settings": {"std": 0.1}},
    ],
}
UPDATE = {"schema": 1, "site": "site-1", "round": 0, "mode": None, "buffers": "seen"}
SCALAR = {"site": "server", "tag": "audit/open", "step": 2, "value": 1}


def _write(file: Path, *lines: object, cut: str = "") -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + cut)


def test_a_folder_without_a_run_is_empty(tmp_path: Path) -> None:
    run = read_run(tmp_path)
    assert run.configuration is None
    assert (run.records, run.status, run.updates, run.scalars) == ([], {}, [], [])


def test_all_that_a_run_left_is_read(tmp_path: Path) -> None:
    _write(tmp_path / "leakage.jsonl", asdict(RECORD))
    _write(tmp_path / "configuration.json", CONFIGURATION)
    _write(tmp_path / "updates.jsonl", UPDATE, {**UPDATE, "mode": "dp-class"})
    _write(tmp_path / "scalars.jsonl", SCALAR)
    _write(tmp_path / "audit_status.json", {"phase": "finished"})
    run = read_run(tmp_path)
    assert run.records == [RECORD]
    assert run.status == {"phase": "finished"}
    assert run.updates == [
        UpdateRecord("site-1", 0, None, "seen"),
        UpdateRecord("site-1", 0, "dp-class", "seen"),
    ]
    assert run.scalars == [ScalarRecord("server", "audit/open", 2, 1.0)]
    assert run.configuration is not None
    assert (run.configuration.rounds, run.configuration.sites) == (3, ("site-1", "site-2"))
    assert run.configuration.defences == (
        Defence(("site-1",), "guard", "PerturbationGuard", {}),
        Defence(None, "update_filter", "UpdateNoise", {"std": 0.1}),
    )


@pytest.mark.parametrize("name", ["leakage.jsonl", "updates.jsonl", "scalars.jsonl"])
def test_a_last_line_still_being_written_is_left_out(tmp_path: Path, name: str) -> None:
    whole: dict[str, Any] = {
        "leakage.jsonl": asdict(RECORD),
        "updates.jsonl": UPDATE,
        "scalars.jsonl": SCALAR,
    }[name]
    for cut in (1, len(json.dumps(whole)) - 1):
        _write(tmp_path / name, whole, whole, cut=json.dumps(whole)[:cut])
        run = read_run(tmp_path)
        assert len(run.records) + len(run.updates) + len(run.scalars) == 2


@pytest.mark.parametrize(
    ("name", "lines", "told"),
    [
        ("leakage.jsonl", ['{"schema": 2, "jo', "{}"], "leakage.jsonl, line 1 is not JSON"),
        ("scalars.jsonl", ["", json.dumps(SCALAR)], "scalars.jsonl, line 1 is not JSON"),
        ("updates.jsonl", [json.dumps(UPDATE), '{"schema": 9}'], "updates.jsonl, line 2: .*schema"),
        ("updates.jsonl", [json.dumps({**UPDATE, "buffers": "yes"})], "line 1: .*'yes'"),
        ("scalars.jsonl", ['{"site": "site-1"}'], "scalars.jsonl, line 1: 'tag' is missing"),
        ("configuration.json", ['{"schema": 2}'], "configuration.json .*schema is not 1"),
        ("configuration.json", ['{"schema": 1}'], "configuration.json .*'job' is missing"),
    ],
)
def test_a_broken_file_is_named_with_its_line(
    tmp_path: Path, name: str, lines: list[str], told: str
) -> None:
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=told):
        read_run(tmp_path)
