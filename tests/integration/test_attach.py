"""An audit of jobs that were written without any thought of one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradward.flare.attach import attach_audit
from gradward.flare.attach_parts import AuditParts
from gradward.flare.simulator import SimulatedRun, run_in_simulator

from .harness import PROBES, ROOT, logs_of, records_of, tensorboard_scalars

CLIENT_API = ROOT / "tests" / "client_api"
EXPERIMENT = {
    "model": "net:Net",
    "dataset": "histology",
    "image_size": [32, 32],
    "channels": 3,
    "num_classes": 2,
    "training": {"lr": 0.002, "batch_size": 1},
    "seed": 3,
}
AUDITOR: dict[str, Any] = {
    "attacks": [{"name": "batchnorm", "max_images": 64}, {"name": "matching", "max_images": 1}],
    "budget": {"evaluations": 300, "image_evaluations": 900},
}
EXPORT_RECIPE = """
import sys
sys.path.insert(0, sys.argv[1])
from net import Net
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
FedAvgRecipe(
    name="foreign", model=Net(), min_clients=2, num_rounds=2, train_script=sys.argv[1] + "/train.py"
).export(sys.argv[2])
"""


def write_scatter_and_gather(job: Path) -> None:
    """A job as NVFlare's examples had them for years: executor, persistor, aggregator."""
    app = job / "app"
    shutil.copytree(CLIENT_API, app / "custom", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROBES / "foreign_trainer.py", app / "custom")
    (app / "config").mkdir()
    common = "nvflare.app_common."
    server: dict[str, Any] = {
        "format_version": 2,
        "workflows": [
            {
                "id": "sag",
                "path": f"{common}workflows.scatter_and_gather.ScatterAndGather",
                "args": {
                    "min_clients": 1,
                    "num_rounds": 2,
                    "wait_time_after_min_received": 60,
                    "train_task_name": "fit",
                    "persistor_id": "persistor",
                },
            }
        ],
        "components": [
            {
                "id": "persistor",
                "path": "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor",
                "args": {"model": {"path": "net.Net", "args": {}}},
            },
            {
                "id": "shareable_generator",
                "path": f"{common}shareablegenerators.full_model_shareable_generator"
                ".FullModelShareableGenerator",
            },
            {
                "id": "aggregator",
                "path": f"{common}aggregators.intime_accumulate_model_aggregator"
                ".InTimeAccumulateWeightedAggregator",
                "args": {"expected_data_kind": "WEIGHT_DIFF"},
            },
        ],
    }
    client = {
        "format_version": 2,
        "executors": [
            {
                "tasks": ["fit"],
                "executor": {
                    "path": "foreign_trainer.ForeignTrainer",
                    "args": {"idle": "site-3"},
                },
            }
        ],
        "components": [],
    }
    meta = {"name": "foreign", "min_clients": 1, "deploy_map": {"app": ["@ALL"]}}
    (app / "config" / "config_fed_server.json").write_text(json.dumps(server))
    (app / "config" / "config_fed_client.json").write_text(json.dumps(client))
    (job / "meta.json").write_text(json.dumps(meta))


@pytest.fixture(scope="module")
def fedavg(tmp_path_factory: pytest.TempPathFactory) -> SimulatedRun:
    """NVFlare's own recipe for a Client API script, audited."""
    base = tmp_path_factory.mktemp("fedavg")
    command = [sys.executable, "-c", EXPORT_RECIPE, str(CLIENT_API), str(base)]
    subprocess.run(command, check=True, capture_output=True)
    before = (base / "foreign" / "app" / "custom" / "train.py").read_bytes()
    parts = AuditParts(EXPERIMENT, AUDITOR)
    attached = attach_audit(base / "foreign", base / "audited", parts)
    assert not attached.notes and attached.train_task == "train"
    assert (base / "audited" / "app" / "custom" / "train.py").read_bytes() == before
    return run_in_simulator(base / "audited", base / "run", sites=["site-1", "site-2"])


@pytest.fixture(scope="module")
def scatter_and_gather(tmp_path_factory: pytest.TempPathFactory) -> SimulatedRun:
    base = tmp_path_factory.mktemp("sag")
    write_scatter_and_gather(base / "foreign")
    auditor = AUDITOR | {"attacks": AUDITOR["attacks"][:1]}
    attached = attach_audit(base / "foreign", base / "audited", AuditParts(EXPERIMENT, auditor))
    assert attached.train_task == "fit"
    return run_in_simulator(base / "audited", base / "run", sites=["site-2", "site-3"])


def test_every_update_of_a_client_api_script_is_scored(fedavg: SimulatedRun) -> None:
    assert fedavg.exit_code == 0, logs_of(fedavg)[-3000:]
    records = records_of(fedavg)
    scored = [record for record in records if record.attack == "batchnorm"]
    keys = {(r.site, r.round, r.control) for r in scored}
    assert keys == {(s, n, c) for s in ("site-1", "site-2") for n in (0, 1) for c in (False, True)}
    assert {record.status for record in scored} == {"ok"}
    assert {record.membership for record in scored} == {"unknown"}


def test_whole_weights_give_the_single_image_away(fedavg: SimulatedRun) -> None:
    """Only a right difference to the round's global weights can: gradients must fit."""
    alone = [r for r in records_of(fedavg) if r.site == "site-1" and r.attack == "matching"]
    real = max(record.recovered for record in alone if not record.control)
    control = max(record.recovered for record in alone if record.control)
    assert real > 0.3 > control + 0.2, (real, control)


def test_the_report_says_that_membership_is_unknown(fedavg: SimulatedRun) -> None:
    page = (fedavg.folder / "report" / "index.html").read_text()
    assert "Membership in the round is unknown" in page


def test_leakage_is_streamed_per_site(fedavg: SimulatedRun) -> None:
    tags = tensorboard_scalars(fedavg.folder / "tb_events" / "site-2")
    assert [step for step, _ in tags["leakage/batchnorm/recovered"]] == [0, 1]


def test_differences_of_an_executor_are_scored(scatter_and_gather: SimulatedRun) -> None:
    assert scatter_and_gather.exit_code == 0, logs_of(scatter_and_gather)[-3000:]
    scored = [r for r in records_of(scatter_and_gather) if r.site == "site-2" and not r.control]
    assert {(r.round, r.status, r.membership) for r in scored} == {
        (0, "ok", "unknown"),
        (1, "ok", "unknown"),
    }


def test_a_site_that_did_not_train_is_on_record_and_has_no_round(
    scatter_and_gather: SimulatedRun,
) -> None:
    idle = [record for record in records_of(scatter_and_gather) if record.site == "site-3"]
    assert {(record.round, record.status) for record in idle} == {(0, "absent"), (1, "absent")}
    private = scatter_and_gather.folder / "workspace.private"
    assert (private / "site-2" / "jobs" / "simulate_job" / "rounds" / "1.json").is_file()
    assert not (private / "site-3" / "jobs" / "simulate_job" / "rounds").exists()
