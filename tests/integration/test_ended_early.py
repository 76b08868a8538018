"""Ctrl-C in a terminal, or a kill, while a federation runs."""

from __future__ import annotations

import signal
from pathlib import Path

from ..terminal import CTRL_C, Terminal

ROOT = Path(__file__).parents[2]


def start(folder: Path, *options: str) -> Terminal:
    """Start a run and wait until there are server, sites and an attack worker."""
    scratch = folder.with_name("scratch")
    scratch.mkdir()
    job = ROOT / "jobs" / "quickstart"
    arguments = ("-m", "gradward", "run", str(job), "--workspace", str(folder), *options)
    terminal = Terminal(*arguments, TMPDIR=str(scratch))
    terminal.wait_for(r"[1-9] of \d sites heard, [1-9]\d* audits open")
    return terminal


def spools(folder: Path) -> list[Path]:
    """Return what is left of captured updates."""
    return list(folder.with_name("scratch").glob("gradward-spool-*"))


def test_ctrl_c_ends_a_run_and_all_its_processes(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    terminal = start(folder)
    terminal.press(CTRL_C)
    assert terminal.end() == 1
    told = " ".join(terminal.seen.split())
    assert "stopped; " in told and str(folder) in told and "Traceback" not in told
    assert terminal.left_behind() == []
    assert (folder / "simulator.log").is_file()


def test_a_killed_run_leaves_no_process_and_no_update(tmp_path: Path) -> None:
    """SIGKILL of its process group: what can be caught ends as by Ctrl-C."""
    folder = tmp_path / "stopped"
    terminal = start(folder, "--sites", "2")
    assert spools(folder)
    terminal.signal(signal.SIGKILL)
    assert terminal.end() == -signal.SIGKILL
    assert terminal.left_behind(seconds=10) == []
    assert spools(folder) == []
    assert (folder / "simulator.log").is_file()
