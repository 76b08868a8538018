"""Scalars reach another tracking tool by the job's configuration alone."""

from __future__ import annotations

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
