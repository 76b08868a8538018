"""The simulator's program ends with its starter, here with a stand-in for NVFlare."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradward.flare import simulator_main

NVFLARE = """
import os, subprocess, sys, time
def main():
    assert sys.argv[1:] == ["simulator", "job"], sys.argv
    assert not any(name.startswith("gradward") for name in sys.modules)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(os.getpid(), child.pid, flush=True)
    time.sleep(60)
"""
STARTER = """
import os, subprocess, sys, time
theirs, ours = os.pipe()
subprocess.Popen(
    [sys.executable, sys.argv[1], str(theirs), "simulator", "job"],
    pass_fds=[theirs], start_new_session=True,
)
os.close(theirs)
time.sleep(60)
"""


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_all_its_processes_when_its_starter_is_gone(
    tmp_path: Path, by: signal.Signals
) -> None:
    (tmp_path / "nvflare").mkdir()
    (tmp_path / "nvflare" / "__init__.py").touch()
    (tmp_path / "nvflare" / "cli.py").write_text(NVFLARE)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, simulator_main.__file__],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert starter.stdout is not None
    with starter.stdout as told:
        started = told.readline().split()
        assert len(started) == 2
        ended_at = time.monotonic()
        starter.send_signal(by)
        starter.wait(timeout=10)
        # The pipe ends when the last process that holds it has ended.
        assert told.read() == b""
        assert time.monotonic() - ended_at < 20
