"""``gradward run`` as somebody meets it who has a job folder with a mistake in it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from gradward.cli import main
from gradward.flare import simulator
from gradward.flare.party_logs import troubles, why_it_ended

ROOT = Path(__file__).parents[2]
CLIENT = "app/config/config_fed_client.json"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# As NVFlare 2.9 writes them, with its own tracebacks before and after.
WRONG_ARGUMENT = """\
2026-11-22 08:35:30,130 - JsonScanner - ERROR - Traceback (most recent call last):
  File "nvflare/fuel/utils/class_utils.py", line 55, in instantiate_class
TypeError: LocalTrainer.__init__() got an unexpected keyword argument 'epochs'

2026-11-22 08:35:30,{ms} - ClientTaskWorker - ERROR - do_one_task execute exception: ConfigError: \
Error processing '/tmp/w/site/simulate_job/app_site/config/config_fed_client.json' in element \
'{{"path": "gradward.flare.trainer.LocalTrainer", "args": {{"epochs": 3}}}}': path: \
'executors.#1.executor', exception: 'ValueError: Class gradward.flare.trainer.LocalTrainer has \
parameters error: TypeError: LocalTrainer.__init__() got an unexpected keyword argument 'epochs'.'
"""
ABORTED = """\
2026-11-22 08:35:31,281 - ServerRunner - ERROR - [identity=simulator_server, run=simulate_job, \
wf=train] - Aborting current RUN due to FATAL_SYSTEM_ERROR received: Result from site-2 is bad
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the quickstart in the folder where one stands."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "jobs" / "quickstart", tmp_path / "job")
    return Path("job")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["run", *arguments])


def spoil(job: Path) -> tuple[list[str], str]:
    text = (job / CLIENT).read_text().splitlines()
    text[13] += ","
    (job / CLIENT).write_text("\n".join(text))
    return ["job"], f"{CLIENT}, line 14, column"


def stranger(job: Path) -> tuple[list[str], str]:
    return ["quickstart"], "there is no folder 'quickstart' here; `gradward export NAME` writes"


def a_file(job: Path) -> tuple[list[str], str]:
    Path("notes.txt").touch()
    return ["notes.txt"], "'notes.txt' is a file"


def no_job(job: Path) -> tuple[list[str], str]:
    (job / "meta.json").unlink()
    return ["job"], "it has no meta.json; `gradward export quickstart` writes one"


def no_list(job: Path) -> tuple[list[str], str]:
    (job / "meta.json").write_text("[]")
    return ["job"], "meta.json must hold a JSON object in braces"


def no_sites(job: Path) -> tuple[list[str], str]:
    (job / "meta.json").write_text('{"custom_props": []}')
    return ["job"], "lists no sites; say how many with --sites"


def bad_settings(job: Path) -> tuple[list[str], str]:
    Path("gradward.json").write_text('{"data": {},}')
    return ["job", "--site-settings", "gradward.json"], "gradward.json, line 1, column 13"


def no_gpu(job: Path) -> tuple[list[str], str]:
    return ["job", "--gpu", "0"], "sees no CUDA device here; leave --gpu out"


def taken(job: Path) -> tuple[list[str], str]:
    Path("thesis").mkdir()
    Path("thesis", "thesis.tex").touch()
    return ["job", "--workspace", "thesis"], "choose another --workspace"


@pytest.mark.parametrize(
    "mistake",
    [spoil, stranger, a_file, no_job, no_list, no_sites, bad_settings, no_gpu, taken],
    ids=lambda mistake: mistake.__name__,
)
def test_mistakes_are_named_before_anything_runs_or_is_removed(
    job: Path,
    mistake: Callable[[Path], tuple[list[str], str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(simulator, "_follow", lambda *arguments: pytest.fail("it ran"))
    earlier = Path("runs", "job")
    earlier.mkdir(parents=True)
    (earlier / simulator.RUN_FILE).touch()
    arguments, words = mistake(job)
    result = call(*arguments)
    assert result.exit_code in (1, 2)
    assert words in result.stderr and "Traceback" not in result.output
    assert (earlier / simulator.RUN_FILE).exists()
    assert result.stdout == ""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EROFS, "Read-only file system", "runs/job/workspace"),
        shutil.Error([("a", "runs/job/workspace", "[Errno 30] Read-only file system: 'a'")]),
    ],
    ids=["one file", "a tree"],
)
def test_a_disk_that_takes_nothing_is_named(
    job: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(*arguments: object) -> int:
        raise error

    monkeypatch.setattr(simulator, "_follow", refuse)
    result = call("job")
    assert result.exit_code == 1
    assert "runs/job/workspace cannot be read or written: " in result.stderr
    assert "Read-only file system; correct its name or rights, or make room" in result.stderr


def follow(logs: dict[str, str], code: int, printed: str = "") -> Callable[..., int]:
    """A simulator that leaves these logs of errors and ends with this code."""

    def run(command: list[str], log: int, workspace: Path, watch: Any) -> int:
        os.write(log, printed.encode())
        for party, text in logs.items():
            (workspace / party).mkdir(parents=True)
            (workspace / party / "error_log.txt").write_text(text)
        return code

    return run


def test_a_mistake_in_the_configuration_is_told_in_one_line(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = {f"site-{n}": WRONG_ARGUMENT.format(ms=200 + n) for n in (2, 1)} | {"server": ABORTED}
    monkeypatch.setattr(simulator, "_follow", follow(logs, 2))
    result = call("job")
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr == (
        "Error: job did not run to its end. site-1, site-2: config_fed_client.json, "
        "executors.#1.executor (gradward.flare.trainer.LocalTrainer): TypeError: "
        "LocalTrainer.__init__() got an unexpected keyword argument 'epochs'\n"
        "Everything that was logged is in runs/job/simulator.log\n"
    )


@pytest.mark.parametrize(
    ("code", "printed", "words"),
    [
        (-9, "", "ended by SIGKILL, perhaps because memory ran short; try --threads 1"),
        (2, "noise\nValueError: first\n  x\nnvflare.ConfigError: last\n", "ConfigError: last"),
        (1, "noise\n", "the simulator ended with code 1 and told no reason"),
    ],
)
def test_without_a_partys_log_the_end_of_the_simulator_is_told(
    tmp_path: Path, code: int, printed: str, words: str
) -> None:
    log = tmp_path / "simulator.log"
    log.write_text(printed)
    assert words in why_it_ended(code, tmp_path / "workspace", log)


def test_the_first_error_comes_first_and_its_consequences_not_at_all(tmp_path: Path) -> None:
    late = "2026-11-22 08:35:32,000 - LocalTrainer - ERROR - [identity=site-3] - cannot carry out"
    for party, text in {"server": ABORTED, "site-3": late, "site-1": WRONG_ARGUMENT}.items():
        (tmp_path / party).mkdir()
        (tmp_path / party / "error_log.txt").write_text(text.format(ms=130))
    found = troubles(tmp_path)
    assert [line.partition(":")[0] for line in found] == ["site-1", "site-3"]


def test_a_site_that_the_others_did_without_is_told_of(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave_records(*arguments: Any) -> int:
        trouble = "2026-11-22 08:35:32,000 - LocalTrainer - ERROR - cannot carry out 'train': gone"
        code = follow({"site-2": trouble}, 0)(*arguments)
        server = simulator.server_folder(Path("runs", "job"))
        server.mkdir(parents=True)
        (server / simulator.FILE_NAME).write_text("")
        return code

    monkeypatch.setattr(simulator, "_follow", leave_records)
    result = call("job")
    assert result.exit_code == 0, result.output
    assert result.stderr == "Warning: site-2: cannot carry out 'train': gone\n"


@pytest.mark.parametrize("by", ENDING)
def test_a_signal_ends_the_run_and_says_what_is_kept(
    job: Path, monkeypatch: pytest.MonkeyPatch, by: signal.Signals
) -> None:
    def stop(*arguments: Any) -> int:
        server = simulator.server_folder(Path("runs", "job"))
        server.mkdir(parents=True)
        (server / simulator.FILE_NAME).write_text(json.dumps({"of": "round 0"}) + "\n")
        os.kill(os.getpid(), by)
        time.sleep(10)
        pytest.fail("it was not stopped")

    monkeypatch.setattr(simulator, "_follow", stop)
    before = {kind: signal.getsignal(kind) for kind in ENDING}
    # Tests that run in the background ignore Ctrl-C, and under nohup a hangup.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        result = call("job")
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    assert result.exit_code == 1
    assert "stopped; 1 record is kept; `gradward report runs/job` shows it" in result.stderr
