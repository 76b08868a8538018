"""Scalars reach another tracking tool by the job's configuration alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradward.report.run_folder import read_run

from .harness import TINY_AUDIT, JobVariant, records_of, simulate

MLFLOW = "nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver"


def test_mlflow_has_what_tensorboard_has(tmp_path: Path) -> None:
    """MLflow is no dependency of ours: ``pip install mlflow-skinny sqlalchemy alembic``."""
    client_module = pytest.importorskip("mlflow.tracking.client", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow's SQLite store needs sqlalchemy")
    job = JobVariant.of("quickstart", tmp_path)
    job.audit(**TINY_AUDIT)
    job.workflow(num_rounds=1)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    job.add("server", MLFLOW, tracking_uri=store, kw_args={"experiment_name": "gradward"})
    run = simulate(job, tmp_path / "run", ["site-1", "site-2"])
    assert run.exit_code == 0
    client = client_module.MlflowClient(store)
    experiment = client.get_experiment_by_name("gradward")
    # Each site has a run, whose name begins with the site's.
    metrics = {
        item.info.run_name[: len("site-1")]: item.data.metrics
        for item in client.search_runs([experiment.experiment_id])
    }
    assert set(metrics) == {"site-1", "site-2"}
    for record in records_of(run):
        tag = f"leakage/{record.attack}/{'control/' if record.control else ''}recovered"
        assert metrics[record.site][tag] == pytest.approx(record.recovered)
    for scalar in read_run(run.folder).scalars:
        if scalar.site != "server":
            assert metrics[scalar.site][scalar.tag] == pytest.approx(scalar.value)


def test_wandb_has_every_value(tmp_path: Path) -> None:
    """Nor is W&B: ``pip install wandb``. Offline, from its files."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    job = JobVariant.of("quickstart", tmp_path)
    job.audit(**TINY_AUDIT)
    job.workflow(num_rounds=2)
    job.add("server", "gradward.flare.weights_and_biases.LiveWandBReceiver", project="ward")
    run = simulate(job, tmp_path / "run", ["site-1", "site-2"])
    assert run.exit_code == 0
    written: dict[str, set[tuple[str, int, float]]] = defaultdict(set)
    for file in run.folder.glob("workspace/server/*/wandb/offline-run-*/*.wandb"):
        name, values = read_wandb(file)
        written[name] |= values
    streamed: dict[str, set[tuple[str, int, float]]] = defaultdict(set)
    for scalar in read_run(run.folder).scalars:
        streamed[scalar.site].add((scalar.tag, scalar.step, scalar.value))
    assert set(written) == {"site-1", "site-2", "server"}
    assert written == streamed


def read_wandb(file: Path) -> tuple[str, set[tuple[str, int, float]]]:
    """Return a run's name and its values."""
    from wandb.proto import wandb_internal_pb2

    name, values = "", set()
    for content in records_in_log(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        name = record.run.display_name or name
        row = {"/".join(item.nested_key): item.value_json for item in record.history.item}
        if "round" in row:
            number = json.loads(row.pop("round"))
            values |= {
                (tag, number, json.loads(value))
                for tag, value in row.items()
                if not tag.startswith("_")
            }
    return name, values


def records_in_log(content: bytes, header: int = 7, block: int = 32768) -> Iterator[bytes]:
    """Take apart LevelDB's log, in which W&B writes: checksum, length and kind before each part."""
    at, parts = header, b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""
