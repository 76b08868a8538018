"""With startup kits, and on the way into a running federation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gradward.flare import submission

from ..test_kit_setup import kit
from . import gradward, mistake
from .command_line import QUICKSTART, interrupt


def submit(outcome: Any) -> None:
    shutil.copytree(QUICKSTART, "job")
    Path("kit").mkdir()
    with patch.object(submission, "submit_job", outcome):
        gradward("submit", "job", "--kit", "kit")


def interrupt_early(*arguments: Any, **options: Any) -> Any:
    raise KeyboardInterrupt


@mistake("… is no startup kit of a site or a server")
def no_kit(folder: Path) -> None:
    Path("kit").mkdir()
    gradward("configure", "kit")


@mistake("… is no site's kit")
def servers_kit(folder: Path) -> None:
    Path("policy").mkdir()
    gradward("configure", str(kit(folder, "server")), "--policy", "policy")


@mistake("… is no JSON object: …")
def damaged_kit(folder: Path) -> None:
    made = kit(folder)
    (made / "local" / "resources.json").write_text("[")
    gradward("configure", str(made))


@mistake("… has no component")
def bare_kit(folder: Path) -> None:
    made = kit(folder)
    (made / "local" / "resources.json").write_text(json.dumps({"components": []}))
    gradward("configure", str(made))


@mistake("… is not there; restore it")
def half_a_kit(folder: Path) -> None:
    made = kit(folder)
    (made / "local" / "resources.json.default").unlink()
    gradward("configure", str(made))


@mistake("… is no administrator's startup kit")
def no_admin(folder: Path) -> None:
    submit(submission.submit_job)


@mistake("the server of … does not answer")
def no_server(folder: Path) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError

    startup = Path("kit/startup")
    startup.mkdir(parents=True)
    (startup / "fed_admin.json").write_text('{"admin": {"username": "lead@hospital.org"}}')
    shutil.copytree(QUICKSTART, "job")
    with patch.object(submission, "new_secure_session", refuse):
        gradward("submit", "job", "--kit", "kit")


@mistake("stopped; nothing was submitted")
def stopped_before(folder: Path) -> None:
    submit(interrupt_early)


@mistake("stopped watching; job …")
def stopped_after(folder: Path) -> None:
    submit(interrupt)


@mistake("the job left no leakage.jsonl in …")
def no_records(folder: Path) -> None:
    done = submission.Submitted("a1b2", Path("gone"), "FINISHED:COMPLETED")
    submit(lambda *arguments, **options: done)


@mistake("the job ended as …")
def abnormal(folder: Path) -> None:
    done = submission.Submitted("a1b2", Path("gone"), "FINISHED:EXECUTION_EXCEPTION")
    submit(lambda *arguments, **options: done)
