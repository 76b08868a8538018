"""Ctrl-C in a terminal, while a federation runs."""

from __future__ import annotations

from pathlib import Path

from ..terminal import CTRL_C, Terminal

ROOT = Path(__file__).parents[2]


def test_ctrl_c_ends_a_run_and_all_its_processes(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    job = ROOT / "jobs" / "quickstart"
    terminal = Terminal("-m", "gradward", "run", str(job), "--workspace", str(folder))
    # By now there are server, sites and an attack worker.
    terminal.wait_for(r"[1-9] of 3 sites heard, [1-9]\d* audits open")
    terminal.press(CTRL_C)
    assert terminal.end() == 1
    told = " ".join(terminal.seen.split())
    assert "stopped; " in told and str(folder) in told and "Traceback" not in told
    assert terminal.left_behind() == []
    assert (folder / "simulator.log").is_file()
