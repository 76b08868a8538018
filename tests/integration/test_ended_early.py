"""Ctrl-C in a terminal, or a kill, while a federation runs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ..terminal import CTRL_C, Terminal

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A temporary folder for a run; pytest's own has too long a name for the simulator's socket."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


def start(folder: Path, scratch: Path, *options: str) -> Terminal:
    """Start a run and wait until there are server, sites and an attack worker."""
    job = ROOT / "jobs" / "quickstart"
    arguments = ("-m", "gradward", "run", str(job), "--workspace", str(folder), *options)
    terminal = Terminal(*arguments, TMPDIR=str(scratch))
    terminal.wait_for(r"[1-9] of \d sites heard, [1-9]\d* audits? open")
    return terminal


def spools(scratch: Path) -> list[Path]:
    """Return what is left of captured updates."""
    return list(scratch.glob("gradward-spool-*"))


def test_ctrl_c_ends_a_run_and_all_its_processes(tmp_path: Path, scratch: Path) -> None:
    folder = tmp_path / "stopped"
    terminal = start(folder, scratch)
    terminal.press(CTRL_C)
    assert terminal.end() == 1
    told = " ".join(terminal.seen.split())
    assert "stopped; " in told and str(folder) in told and "Traceback" not in told
    assert terminal.left_behind() == []
    assert (folder / "simulator.log").is_file()


def test_a_killed_run_leaves_no_process_and_no_update(tmp_path: Path, scratch: Path) -> None:
    """SIGKILL of its process group: what can be caught ends as by Ctrl-C."""
    folder = tmp_path / "stopped"
    terminal = start(folder, scratch, "--sites", "2")
    assert spools(scratch)
    terminal.signal(signal.SIGKILL)
    assert terminal.end() == -signal.SIGKILL
    assert terminal.left_behind(seconds=10) == []
    assert spools(scratch) == []
    assert (folder / "simulator.log").is_file()
