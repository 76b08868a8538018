"""``gradward audit`` on several updates, as somebody meets it who has a folder of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import gradward
from gradward.attacks.spool import save_state
from gradward.cli import main
from gradward.report.pictures import save_picture
from gradward.state_files import read_state

from .attack_fixtures import patches, train
from .audit_desk import ONE, command_line, network

NAMES = ("site-1", "site-2")
# It waits for ever once the first update is finished.
WARDNET = """
import time
from pathlib import Path
from gradward.models.literature import BatchNormCNN

class Waiting(BatchNormCNN):
    def forward(self, images):
        while Path(__file__).with_name("out").joinpath("site-1").exists():
            time.sleep(0.05)
        return super().forward(images)

def make(**options):
    return BatchNormCNN(width=8, **options)

def waiting(**options):
    return Waiting(width=8, **options)
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``round`` with the global state and two updates, their truths, and a network."""
    monkeypatch.chdir(tmp_path)
    for folder in ("round", "empty", "public"):
        Path(folder).mkdir()
    for number, name in enumerate(NAMES):
        image = patches()[200 + number]
        before, update, _ = train(network(), image[None], torch.tensor([1]), ONE)
        save_state(Path("round", f"{name}.npz"), update)
        Path("truth", name).mkdir(parents=True)
        save_picture(Path("truth", name, "jane-doe.png"), image)
        save_picture(Path("public", f"{number}.png"), patches()[number])
    torch.save(before, "round/global.pt")
    Path("round", "notes.txt").write_text("of this round")
    Path("wardnet.py").write_text(WARDNET)
    return tmp_path


def arguments(*more: str, **changes: Any) -> list[str]:
    options = {
        "model": "wardnet:make",
        "global": "round/global.pt",
        "update": "round",
        "public": "public",
    }
    return command_line({**options, **changes}, *more)


def call(*more: str, **changes: Any) -> Result:
    return CliRunner().invoke(main, arguments(*more, **changes))


def test_a_folder_of_updates(desk: Path) -> None:
    spoiled = read_state("round/site-1.npz") | {"fc.bias": torch.full((2,), torch.nan)}
    save_state(Path("round", "site-3.npz"), spoiled)
    Path("truth", "site-3").mkdir()
    save_picture(Path("truth", "site-3", "jane-doe.png"), patches()[0])
    result = call(truth="truth")
    assert result.exit_code == 1, "for the one that cannot be used"
    words = " ".join(result.stdout.split())
    for heading in ("Update", "Attack", "Evaluations", "SSIM", "Recovered", "Gain", "Status"):
        assert heading in words
    assert "site-3: rejected, the update: 'fc.bias' has values that are not finite" in words
    assert "2 of 3 updates were audited. Only what exceeds the control was leaked" in words
    told = [line.partition(" updates") for line in result.stderr.splitlines()]
    assert [begin for begin, _, _ in told] == ["1 of 3", "2 of 3", "3 of 3"]
    assert all("left: " in rest for _, _, rest in told[:2])
    assert "\r" not in result.stderr and "\x1b" not in result.stderr
    assert "jane-doe" not in result.output
    summary = json.loads(Path("out", "summary.json").read_text())
    assert [item["status"] for item in summary["updates"]] == ["ok", "ok", "rejected"]
    for item in summary["updates"][:2]:
        audit = json.loads(Path("out", item["update"], "audit.json").read_text())
        assert audit["best"] == item["best"] and audit["facts"]["model"] == "wardnet:make"
        assert f"{item['best']['recovered']:.2f} ({item['best']['control']:.2f})" in words
        assert Path("out", item["update"], "features", "side-by-side.png").is_file()


def test_updates_one_by_one_without_truths_as_json(desk: Path) -> None:
    files = [f"round/{name}.npz" for name in reversed(NAMES)]
    result = call("--json", update=files, model="bn_cnn", **{"model-options": '{"width": 8}'})
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert [item["update"] for item in summary["updates"]] == ["site-2", "site-1"]
    assert all(item["best"] is None for item in summary["updates"])
    assert result.stdout == Path("out", "summary.json").read_text()


def test_ctrl_c_keeps_what_is_finished_and_leaves_nothing_running(desk: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(gradward.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-m", "gradward", *arguments(model="wardnet:waiting")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        # Tests that run in the background ignore Ctrl-C, and their children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not Path("out", "summary.json").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # As a terminal does: every process of the group gets it.
    os.killpg(process.pid, signal.SIGINT)
    # It returns once no process is left that could write to either.
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and output == ""
    told, stopped = errors.splitlines()
    assert re.fullmatch(r"1 of 2 updates, (about|a few) .+ left: site-1, ok", told)
    assert stopped == "Error: stopped; 1 of 2 updates are finished and kept in out"
    assert sorted(path.name for path in Path("out").iterdir()) == ["site-1", "summary.json"]
    summary = json.loads(Path("out", "summary.json").read_text())
    assert (summary["finished"], summary["total"]) == (1, 2)
    again = call()
    assert again.exit_code == 1 and "out is not empty" in again.output


def test_a_copy_of_the_global_state_is_no_update(desk: Path) -> None:
    save_state(Path("round", "copy.npz"), read_state("round/global.pt"))
    result = call()
    assert result.exit_code == 0, result.output
    assert "round/copy.npz holds the global state and is left out" in result.stderr
    assert "global.pt" not in result.stderr, "named as the global state, it is no surprise"
    summary = json.loads(Path("out", "summary.json").read_text())
    assert [item["update"] for item in summary["updates"]] == list(NAMES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"update": "empty"}, "the folder empty holds no updates"),
        ({"update": ["round", "round/site-1.npz"]}, "each needs a name of its own"),
        ({"truth": "truth/site-1"}, "2 of 2 are missing, the first is 'site-1'"),
        ({"truth": "nowhere"}, "--truth must hold a folder of images for each"),
        ({"device": ["cpu", "abacus"]}, "there is no device 'abacus' here"),
        ({"device": ["cpu", "cpu"], "workers": 1}, "at least the number of devices"),
        ({"workers": 0}, "'--workers'"),
        ({"update": "round/site-1.npz", "workers": 2}, "one update is attacked by one process"),
        ({"global": "nowhere.pt"}, "nowhere.pt: there is no such file"),
        ({"out": "public"}, "public is not empty; the results of several updates need"),
        ({"out": "wardnet.py/out"}, "wardnet.py/out cannot be written: Not a directory; name"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    desk: Path, changes: dict[str, Any], words: str
) -> None:
    result = call(**changes)
    assert result.exit_code in (1, 2), result.output
    assert words in " ".join(result.output.split()) and "Traceback" not in result.output
    assert not (desk / "out").exists()
