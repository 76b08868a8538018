"""Leakage can be seen while the job runs; models can be validated at its end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

from gradward.flare.simulator import SimulatedRun, server_folder
from gradward.report.records import read_records

from .harness import ROOT, TINY_AUDIT, JobVariant, simulate, tensorboard_scalars


def test_scalars_are_visible_within_ten_seconds_of_being_sent(tmp_path: Path) -> None:
    job = JobVariant.of("quickstart", tmp_path)
    job.audit(**TINY_AUDIT)
    job.workflow(num_rounds=3, min_clients=1)
    folder = tmp_path / "run"
    finished: list[SimulatedRun] = []

    def run() -> None:
        finished.append(simulate(job, folder, ["site-2"]))

    thread = threading.Thread(target=run)
    thread.start()
    seen: dict[int, float] = {}
    events = server_folder(folder) / "tb_events" / "site-2"
    while thread.is_alive():
        if events.is_dir():
            for step, _ in tensorboard_scalars(events).get("leakage/batchnorm/recovered", []):
                seen.setdefault(step, time.time())
        time.sleep(0.5)
    thread.join()
    assert finished[0].exit_code == 0
    journal = folder / "workspace.private" / "site-2" / "jobs" / "simulate_job" / "answers.log"
    sent = {
        entry["round"]: datetime.strptime(entry["time"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
        for entry in map(json.loads, journal.read_text().splitlines())
    }
    assert set(sent) == {0, 1, 2}
    assert set(seen) == set(sent), "each round was seen before the run ended"
    assert all(seen[number] - sent[number] < 10 for number in sent)


def test_cross_site_validation_uses_validate_and_submit_model(tmp_path: Path) -> None:
    job = JobVariant.of("quickstart", tmp_path)
    job.audit(**TINY_AUDIT | {"sites": ["nobody"]})
    job.workflow(num_rounds=1, min_clients=1)
    job.add(
        "server",
        "nvflare.app_opt.pt.file_model_locator.PTFileModelLocator",
        pt_persistor_id="persistor",
    )
    job.add(
        "server", "nvflare.app_common.widgets.validation_json_generator.ValidationJsonGenerator"
    )
    job.server["workflows"].append(
        {
            "id": "cross_site",
            "path": "nvflare.app_common.workflows.cross_site_model_eval.CrossSiteModelEval",
            "args": {"model_locator_id": "ptfilemodellocator"},
        }
    )
    run = simulate(job, tmp_path / "run", ["site-2", "site-3"])
    assert run.exit_code == 0
    results = json.loads((run.folder / "cross_site_val" / "cross_val_results.json").read_text())
    for site in ("site-2", "site-3"):
        assert {"site-2", "site-3"} < set(results[site]), "local models and the global one"
        for metrics in results[site].values():
            assert 0 <= metrics["balanced_accuracy"] <= 1


def test_plain_nvflare_runs_the_job_too(tmp_path: Path) -> None:
    job = JobVariant.of("quickstart", tmp_path)
    shutil.rmtree(job.folder / "app" / "custom")
    shutil.copytree(ROOT / "jobs" / "quickstart" / "app" / "custom", job.folder / "app" / "custom")
    job.audit(**TINY_AUDIT)
    job.workflow(num_rounds=1)
    workspace = tmp_path / "ws"
    command = [sys.executable, "-m", "nvflare.cli", "simulator", str(job.write())]
    command += ["-w", str(workspace), "-n", "3", "-t", "3"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    records = list(read_records(workspace / "server" / "simulate_job" / "leakage.jsonl"))
    assert {(r.site, r.status) for r in records} == {(f"site-{i}", "ok") for i in (1, 2, 3)}
    assert (tmp_path / "ws.private" / "site-1").is_dir()
