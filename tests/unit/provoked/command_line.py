"""At the command line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gradward.flare import simulator

from . import gradward, mistake

QUICKSTART = Path(__file__).parents[3] / "jobs" / "quickstart"
CLIENT = "job/app/config/config_fed_client.json"


def run(*options: str, follow: Any = None) -> None:
    if not Path("job").exists():
        shutil.copytree(QUICKSTART, "job")
    with patch.object(simulator, "_follow", follow):
        gradward("run", "job", *options)


def interrupt(*arguments: Any, accepted: Any = None, **options: Any) -> Any:
    if accepted is not None:
        accepted("a1b2")
    raise KeyboardInterrupt


@mistake("there is no folder")
def no_folder(folder: Path) -> None:
    gradward("run", "quickstart")


@mistake("… is not a job folder: it has no meta.json; `gradward")
def no_meta(folder: Path) -> None:
    Path("job").mkdir()
    run()


@mistake("…, line …, column … is not JSON")
def comma(folder: Path) -> None:
    shutil.copytree(QUICKSTART, "job")
    Path(CLIENT).write_text(Path(CLIENT).read_text().replace("},", "},,", 1))
    run()


@mistake("--site-settings: …")
def settings_of_a_run(folder: Path) -> None:
    Path("gradward.json").write_text("{,}")
    run("--site-settings", "gradward.json")


@mistake("the job's meta.json lists no sites")
def no_sites(folder: Path) -> None:
    shutil.copytree(QUICKSTART, "job")
    Path("job/meta.json").write_text("{}")
    run()


@mistake("no component of this job has a 'seed'")
def no_seed(folder: Path) -> None:
    shutil.copytree(QUICKSTART, "job")
    for file in Path("job").glob("*/config/*.json"):
        file.write_text("{}")
    run("--seed", "1")


@mistake("--gpu …")
def no_gpu(folder: Path) -> None:
    with patch("torch.cuda.is_available", lambda: False):
        run("--gpu", "0")


@mistake("the temporary folder … has a name of … bytes")
def long_temporary_folder(folder: Path) -> None:
    with patch("tempfile.tempdir", str(folder / ("t" * 76))):
        run()


@mistake("… is not empty and holds no earlier run")
def taken(folder: Path) -> None:
    Path("thesis").mkdir()
    Path("thesis/thesis.tex").touch()
    run("--workspace", "thesis")


@mistake("… cannot be read or written")
def no_disk(folder: Path) -> None:
    run("--workspace", "/proc/gradward")


@mistake("… did not run to its end")
def not_run(folder: Path) -> None:
    run(follow=lambda *arguments: 2)


@mistake("stopped; nothing was scored yet")
def run_stopped(folder: Path) -> None:
    run(follow=interrupt)


@mistake("…: 'data' must map data set names to objects")
def data_of_settings(folder: Path) -> None:
    Path("gradward.json").write_text('{"data": []}')
    gradward("data", "ward", "--site-settings", "gradward.json")


@mistake("… cannot be read: …")
def settings_are_a_folder(folder: Path) -> None:
    Path("gradward.json").write_bytes(b"")
    with patch.object(Path, "read_text", side_effect=PermissionError(13, "Permission denied")):
        gradward("data", "ward", "--site-settings", "gradward.json")


@mistake("… is no text in UTF-8")
def latin(folder: Path) -> None:
    Path("gradward.json").write_bytes(b'{"data": "\xe4"}')
    gradward("data", "ward", "--site-settings", "gradward.json")


@mistake("… must hold a JSON object in braces")
def a_list(folder: Path) -> None:
    Path("gradward.json").write_text("[]")
    gradward("data", "ward", "--site-settings", "gradward.json")


@mistake("there is no job …")
def no_such_job(folder: Path) -> None:
    gradward("export", "moon")


@mistake("… exists already; choose another folder with --out")
def exported_before(folder: Path) -> None:
    Path("quickstart").mkdir()
    gradward("export", "quickstart")


@mistake("there is no leakage.jsonl")
def no_report(folder: Path) -> None:
    gradward("report", ".")


def attach(*options: str) -> None:
    if not Path("job").exists():
        shutil.copytree(QUICKSTART, "job")
    common = "--model lenet --dataset ward --channels 1 --classes 2 --lr .1 --batch-size 4"
    gradward("attach", "job", "--out", "out", *common.split(), "--image-size", "32", "32", *options)


@mistake("… is not JSON: …")
def no_json(folder: Path) -> None:
    attach("--budget", "{1000")


@mistake("a JSON … is needed")
def other_json(folder: Path) -> None:
    attach("--budget", "[1000]")


@mistake("… has parts of gradward already")
def attached_before(folder: Path) -> None:
    attach()


@mistake("… is not a job folder: it has no meta.json with")
def no_deploy_map(folder: Path) -> None:
    Path("job").mkdir()
    Path("job/meta.json").write_text("{}")
    attach()


@mistake("a setting must read COMPONENT.ARGUMENT=VALUE")
def no_setting(folder: Path) -> None:
    run("--set", "seed")


@mistake("several runs, --names and --out belong to --compare")
def no_compare(folder: Path) -> None:
    gradward("report", ".", "--names", "a")
