"""The parent's side of the attack worker."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gradward
from gradward.attacks.worker_process import WorkerError, WorkerProcess

FAKE_WORKER = """
import json, os, sys, time
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "die":
        os.kill(os.getpid(), 9)
    if request["do"] == "sleep":
        time.sleep(60)
    print(json.dumps({"pid": os.getpid(), "file": __file__}), flush=True)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerProcess:
    (tmp_path / "fake_worker.py").write_text(FAKE_WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return WorkerProcess(tmp_path, module="fake_worker")


def test_one_process_answers_many_requests(worker: WorkerProcess) -> None:
    first = worker.request({"do": "answer"}, timeout=30)
    assert worker.request({"do": "answer"}, timeout=30) == first
    worker.stop()


def test_a_killed_worker_is_told_and_replaced(worker: WorkerProcess) -> None:
    with pytest.raises(WorkerError, match="exit code -9"):
        worker.request({"do": "die"}, timeout=30)
    assert worker.request({"do": "answer"}, timeout=30)["pid"]
    worker.stop()


def test_a_slow_worker_is_stopped(worker: WorkerProcess) -> None:
    with pytest.raises(WorkerError, match="longer than 1 s"):
        worker.request({"do": "sleep"}, timeout=1)
    worker.stop()


def test_a_stopped_worker_starts_no_more(worker: WorkerProcess) -> None:
    worker.request({"do": "answer"}, timeout=30)
    worker.stop()
    with pytest.raises(WorkerError):
        worker.request({"do": "answer"}, timeout=30)


def test_the_worker_runs_the_package_that_came_with_the_job(tmp_path: Path) -> None:
    """As ``app/custom`` the package is on its parent's path alone."""
    shipped = tmp_path / "app" / "custom" / "gradward"
    shutil.copytree(Path(gradward.__file__).parent, shipped)
    (shipped / "attacks" / "marker.py").write_text(FAKE_WORKER)
    code = (
        f"import sys; sys.path.insert(0, {str(shipped.parent)!r})\n"
        "from pathlib import Path\n"
        "from gradward.attacks.worker_process import WorkerProcess\n"
        f"worker = WorkerProcess(Path({str(tmp_path)!r}), module='gradward.attacks.marker')\n"
        "print(worker.request({'do': 'answer'}, timeout=30)['file'])\n"
        "worker.stop()\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    assert output.strip() == str(shipped / "attacks" / "marker.py")
