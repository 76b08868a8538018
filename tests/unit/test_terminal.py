"""What stands on a terminal while something long goes on, and what Ctrl-C leaves of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from gradward.attacks.spool import save_state

from ..terminal import CTRL_C, Terminal
from .audit_desk import command_line, trained_states

STUDY = Path(__file__).parents[2] / "benchmarks" / "attacks.py"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    before, after = trained_states()
    torch.save(before, "global.pt")
    save_state(Path("update.npz"), after)
    return tmp_path


@pytest.mark.parametrize("colours", [True, False])
def test_an_audit_draws_bars_and_stops_at_ctrl_c(desk: Path, colours: bool) -> None:
    options = {"model": "bn_cnn", "model-options": '{"width": 8}', "global": "global.pt"}
    arguments = command_line(
        {**options, "update": "update.npz", "evaluations": 10**8, "attack": "matching"}
    )
    environment = {} if colours else {"NO_COLOR": "1"}
    terminal = Terminal("-m", "gradward", *arguments, **environment)
    # A percent of so many evaluations takes too long for a bar to move.
    terminal.wait_for("all attacks")
    terminal.press(CTRL_C)
    assert terminal.end() == 1
    assert "Error: stopped; nothing was written" in terminal.seen
    assert "Traceback" not in terminal.seen
    assert bool(COLOUR.search(terminal.seen)) == colours
    assert terminal.left_behind() == [] and not Path("out").exists()


def test_a_study_tells_its_cells_and_keeps_them_at_ctrl_c(tmp_path: Path) -> None:
    options = f"--cases lenet --seeds 2 --pictures 1 --cpu-seconds 1 --out {tmp_path}"
    terminal = Terminal(str(STUDY), *options.split(), "--peer-python", sys.executable)
    terminal.wait_for(r"\[1 of \d+, (about|a few) .+ left\] lenet")
    terminal.press(CTRL_C)
    assert terminal.end() == 1
    told = " ".join(terminal.seen.split())
    kept = re.search(r"stopped; (\d+) of \d+ cells are done and kept in", told)
    assert kept and "Traceback" not in told
    assert len(list((tmp_path / "records").glob("*.json"))) == int(kept.group(1)) >= 1
    assert terminal.left_behind() == []
