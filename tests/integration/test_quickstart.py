"""The default job as a newcomer runs it: real leakage, honest controls, live scalars."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from gradward.report.records import LeakageRecord, read_records
from gradward.report.run_folder import read_run

from .harness import ROOT, tensorboard_scalars

SITES = ("site-1", "site-2", "site-3")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Run ``gradward run jobs/quickstart`` away from the shared sample data."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {k: v for k, v in os.environ.items() if k != "GRADWARD_DATA"}
    finished = subprocess.run(
        [sys.executable, "-m", "gradward", "run", str(ROOT / "jobs" / "quickstart")],
        cwd=folder,
        env=environment | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    log = folder / "runs" / "quickstart" / "simulator.log"
    assert finished.returncode == 0, finished.stderr + log.read_text(errors="replace")[-4000:]
    return folder / "runs" / "quickstart", finished.stdout, finished.stderr


@pytest.fixture(scope="module")
def records(demo: tuple[Path, str, str]) -> list[LeakageRecord]:
    return list(read_records(demo[0] / "leakage.jsonl"))


def test_every_site_round_and_attack_is_on_record_once(records: list[LeakageRecord]) -> None:
    keys = [(r.site, r.round, r.attack, r.control) for r in records]
    attacks = ("batchnorm", "matching")
    assert sorted(keys) == sorted(
        (site, number, attack, control)
        for site in SITES
        for number in range(3)
        for attack in attacks
        for control in (False, True)
    )
    assert {r.status for r in records} == {"ok"}


def test_the_one_image_site_is_recovered_in_every_round(records: list[LeakageRecord]) -> None:
    for number in range(3):
        real = [r for r in records if (r.site, r.round, r.control) == ("site-1", number, False)]
        best = max(real, key=lambda r: r.recovered or 0)
        assert best.recovered is not None and best.recovered >= 0.8
        assert best.reid == 1.0 and best.rank == 1.0 and (best.gallery or 0) >= 100


def test_its_controls_recover_nothing(records: list[LeakageRecord]) -> None:
    controls = [r for r in records if r.site == "site-1" and r.control]
    assert controls
    for record in controls:
        assert record.recovered is not None and record.recovered <= 0.05
        assert record.reid == 0.0


def test_records_say_what_the_attacker_knew(records: list[LeakageRecord]) -> None:
    for record in records:
        needs_labels = record.attack == "matching"
        assert record.knowledge["labels"] == ("inferred" if needs_labels else "lacked")
        assert record.knowledge["prior"] == "given"
        assert record.evals and record.seconds is not None and record.loss is not None


def test_tensorboard_holds_leakage_of_three_sites(
    demo: tuple[Path, str, str], records: list[LeakageRecord]
) -> None:
    for site in SITES:
        scalars = tensorboard_scalars(demo[0] / "tb_events" / site)
        for tag in ("train/loss", "valid/balanced_accuracy"):
            assert [step for step, _ in scalars[tag]] == [0, 1, 2]
        for attack in ("batchnorm", "matching"):
            for control in (False, True):
                tag = f"leakage/{attack}/{'control/' if control else ''}recovered"
                expected = {
                    r.round: r.recovered
                    for r in records
                    if (r.site, r.attack, r.control) == (site, attack, control)
                }
                assert dict(scalars[tag]) == pytest.approx(expected)


def test_the_run_folder_says_what_was_run(demo: tuple[Path, str, str]) -> None:
    run = read_run(demo[0])
    assert run.configuration is not None and run.configuration.defences == ()
    assert (run.configuration.sites, run.configuration.rounds) == (SITES, 3)
    assert sorted((update.site, update.round) for update in run.updates) == sorted(
        (site, number) for site in SITES for number in range(3)
    )
    assert {(update.mode, update.buffers) for update in run.updates} == {("undefended", "seen")}
    for site in (*SITES, "server"):
        logged = {(item.tag, item.step): item.value for item in run.scalars if item.site == site}
        shown = tensorboard_scalars(demo[0] / "tb_events" / site)
        assert logged == pytest.approx(
            {(tag, step): value for tag, values in shown.items() for step, value in values}
        )


def test_pictures_stay_in_the_private_folder(demo: tuple[Path, str, str]) -> None:
    folder = demo[0]
    private = folder / "workspace.private" / "site-1" / "jobs" / "simulate_job"
    pictures = sorted(file.name for file in (private / "pictures").iterdir())
    assert len(pictures) == 6
    with Image.open(private / "pictures" / pictures[0]) as picture:
        assert picture.width > 400
    elsewhere = [f for f in folder.rglob("*.png") if "workspace.private" not in f.parts]
    assert not elsewhere
    assert not list(folder.rglob("*spool*"))


def test_the_site_keeps_a_journal_of_its_answers(demo: tuple[Path, str, str]) -> None:
    journal = (
        demo[0] / "workspace.private" / "site-1" / "jobs" / "simulate_job" / "answers.log"
    ).read_text()
    lines = [json.loads(line) for line in journal.splitlines()]
    assert len(lines) == 6 and {line["status"] for line in lines} == {"ok"}


def test_the_command_ends_with_a_table_and_says_where_to_look(demo: tuple[Path, str, str]) -> None:
    folder, output, _ = demo
    assert re.search(r"site-1 +1 +matching .* 1\.00 \(0\.00\)", output)
    assert "not recovered by these attacks" in output
    assert "tensorboard --logdir" in output
    page = (folder / "report" / "index.html").read_text()
    assert page.count("<tr") > 36 and "audits were open" not in page


def test_progress_names_round_sites_and_audits(demo: tuple[Path, str, str]) -> None:
    assert re.search(r"round 3 of 3, 3 of 3 sites heard, \d+ audits? open", demo[2])
