"""One job's audits on the server, with a worker that answers at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvflare.apis.controller_spec import Task, TaskCompletionStatus
from nvflare.apis.fl_context import FLContext

from gradward.flare.audit_attack import AuditSettings
from gradward.flare.audit_run import AuditRun
from gradward.flare.audit_spool import CapturedUpdate, remove_orphans
from gradward.flare.experiment import Experiment
from gradward.flare.protocol import SCORE_NAMES, ScoreReply
from gradward.flare.site import Site
from gradward.report.records import LeakageLog, LeakageRecord, read_records

from .test_flare_courier import FakeEngine, FakeWorkflow

FAKE_ATTACK = """
import json, sys
from pathlib import Path
import numpy as np
for line in sys.stdin:
    request = json.loads(line)
    entry = Path(request["entry"])
    (entry / ("on-" + request["device"])).touch()
    (entry / f"told-{request['steps']}").touch()
    if (entry.parent / "hang").exists():
        import time; time.sleep(60)
    images = np.zeros((1, 3, 32, 32), np.float32)
    np.savez(entry / "result.npz", **{"batchnorm/real": images, "batchnorm/control": images})
    common = {"attack": "batchnorm", "status": "ok", "reason": "", "loss": 0.1, "evals": 5,
              "seconds": 0.1, "n_images": 1, "labels": [0], "knowledge": {"labels": "inferred"}}
    results = [common | {"control": False}, common | {"control": True}]
    print(json.dumps({"status": "ok", "reason": "", "results": results}), flush=True)
"""
SCORES = dict.fromkeys(SCORE_NAMES, 0.5)
ARRAYS = {"weight": np.ones(3, np.float32)}


class AnsweringWorkflow(FakeWorkflow):
    """Sites answer at once."""

    def send(self, task: Task, fl_ctx: FLContext, targets: list[str]) -> None:
        super().send(task, fl_ctx, targets)
        reply = ScoreReply("ok", real=SCORES, control=SCORES, prior=SCORES, membership="known")
        self.end(TaskCompletionStatus.OK, reply.to_shareable())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def audit_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **always: Any
) -> Iterator[Callable[..., AuditRun]]:
    """Make runs whose attacks cost nothing, all with ``always`` in their settings."""
    (tmp_path / "fake_attack.py").write_text(FAKE_ATTACK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    runs: list[AuditRun] = []

    def make(
        public_checksum: str | None = None,
        server: Mapping[str, Any] | None = None,
        recorded: Callable[[LeakageRecord], None] = lambda record: None,
        **changes: Any,
    ) -> AuditRun:
        experiment = Experiment(
            "bn_cnn", "histology", [32, 32], 3, 2, public_checksum=public_checksum
        )
        settings = AuditSettings(
            job="job-1",
            attacks=[{"name": "batchnorm"}],
            budget={"evaluations": 5},
            workers=1,
            attack_timeout=30,
            score_timeout=30,
            keep_in=None,
            worker_module="fake_attack",
        )
        run = AuditRun(
            experiment,
            Site("server", tmp_path, tmp_path, **(server or {})),
            replace(settings, **always, **changes),
            LeakageLog(tmp_path / "leakage.jsonl"),
            log=lambda message: None,
            changed=lambda **values: None,
            recorded=recorded,
        )
        runs.append(run)
        return run

    try:
        yield make
    finally:
        for run in runs:
            run.stop()


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., AuditRun]]:
    with audit_runs(tmp_path, monkeypatch) as make:
        yield make


def audit_one(run: AuditRun) -> None:
    run.remember_global(0, ARRAYS)
    run.submit(CapturedUpdate("site-1", 0, ARRAYS))
    run.round_done(0)


def test_an_audit_leaves_two_records_and_an_empty_spool(
    make_run: Callable[..., AuditRun], tmp_path: Path
) -> None:
    run = make_run()
    run.courier.bind(AnsweringWorkflow(), FakeEngine())
    audit_one(run)
    wait_for(lambda: run.open_audits == 0)
    real, control = read_records(tmp_path / "leakage.jsonl")
    assert (real.control, control.control) == (False, True)
    assert real.status == control.status == "ok"
    assert real.recovered == 0.5 and real.prior["reid"] == 0.5 and real.evals == 5
    spool = run._spool.folder
    wait_for(
        lambda: {f.name for f in spool.iterdir()} == {"prior.npy", "public.npz", "control.npz"}
    )
    run.stop()
    assert not spool.exists()


def test_each_worker_computes_on_its_own_device(make_run: Callable[..., AuditRun]) -> None:
    run = make_run(workers=3, server={"audit_devices": ("one", "two")})
    spool = run._spool.folder
    (spool / "hang").touch()
    run.remember_global(0, ARRAYS)
    for site in ("site-1", "site-2", "site-3"):
        run.submit(CapturedUpdate(site, 0, ARRAYS))
    wait_for(lambda: len(list(spool.glob("*/on-*"))) == 3)
    assert sorted(file.name for file in spool.glob("*/on-*")) == ["on-one", "on-one", "on-two"]


def test_the_spool_is_closed_to_others(make_run: Callable[..., AuditRun]) -> None:
    run = make_run()
    spool = run._spool.folder
    (spool / "hang").touch()
    audit_one(run)
    wait_for(lambda: (spool / "0-site-1" / "update.npz").exists())
    for place in (spool, spool / "0-site-1", spool / "0-site-1" / "update.npz"):
        assert place.stat().st_mode & 0o077 == 0, place.name


def test_spools_of_dead_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, alive = (tmp_path / f"gradward-spool-{pid}-x" for pid in (gone.pid, os.getpid()))
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "update.npz").touch()
    remove_orphans()
    assert not dead.exists() and alive.exists()


def test_a_killed_server_leaves_no_spool(tmp_path: Path) -> None:
    """Also when its whole process group is killed, as by Ctrl-C of a simulation."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from gradward.attacks.worker_process import WorkerProcess\n"
        "worker = WorkerProcess(Path(sys.argv[1]))\n"
        "worker.request({}, timeout=60)\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    spool = tmp_path / "spool"
    spool.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(spool)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert server.stdout is not None and server.stdout.readline() == b"ready\n"
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    wait_for(lambda: not spool.exists())


def test_the_same_update_is_audited_once(make_run: Callable[..., AuditRun], tmp_path: Path) -> None:
    run = make_run()
    run.courier.bind(AnsweringWorkflow(), FakeEngine())
    audit_one(run)
    wait_for(lambda: run.open_audits == 0)
    run.submit(CapturedUpdate("site-1", 0, ARRAYS))
    assert run.open_audits == 0
    assert len(list(read_records(tmp_path / "leakage.jsonl"))) == 2


def test_a_slow_attack_is_stopped_and_recorded(
    make_run: Callable[..., AuditRun], tmp_path: Path
) -> None:
    run = make_run(attack_timeout=1)
    (run._spool.folder / "hang").touch()
    audit_one(run)
    wait_for(lambda: run.open_audits == 0)
    (record,) = read_records(tmp_path / "leakage.jsonl")
    assert record.status == "failed" and "longer than 1 s" in record.reason


def test_what_is_open_at_the_end_is_on_record(
    make_run: Callable[..., AuditRun], tmp_path: Path
) -> None:
    run = make_run()
    audit_one(run)
    assert run.give_up("the job ended") == 1
    (record,) = read_records(tmp_path / "leakage.jsonl")
    assert record.status == "unscored" and record.reason == "the job ended"
    assert run.open_audits == 0


def test_reconstructions_are_kept_only_where_the_job_says_so(
    make_run: Callable[..., AuditRun], tmp_path: Path
) -> None:
    run = make_run(keep_in=tmp_path / "reconstructions")
    run.courier.bind(AnsweringWorkflow(), FakeEngine())
    audit_one(run)
    wait_for(lambda: run.open_audits == 0)
    kept = list((tmp_path / "reconstructions").iterdir())
    assert [file.name for file in kept] == ["0-site-1-batchnorm.npy"]


def test_undeclared_public_images_fail_the_audit(
    make_run: Callable[..., AuditRun], tmp_path: Path
) -> None:
    run = make_run(public_checksum="sha256:0")
    audit_one(run)
    wait_for(lambda: run.open_audits == 0)
    (record,) = read_records(tmp_path / "leakage.jsonl")
    assert record.status == "failed" and "checksum" in record.reason
