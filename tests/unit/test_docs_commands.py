"""Commands and Python blocks of the documentation, run as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import gradward.audit
from gradward.attacks import Budget
from gradward.cli import main
from gradward.flare.recipe import AuditRecipe

from .docs_pages import ROOT, commands, scripts


def call(page: str, start: str, *more: str) -> Result:
    """Run the one command of a page that starts so, in the current folder."""
    (command,) = {item for item in commands(page) if item.startswith(start)}
    return CliRunner().invoke(main, [*shlex.split(command)[1:], *more])


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the example, its training cut short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    import make_update

    monkeypatch.setattr(make_update, "BEFORE", replace(make_update.BEFORE, epochs=1))
    monkeypatch.setattr(make_update, "TRAINED_ON", 16)
    make_update.main()
    return tmp_path


def test_files_of_an_earlier_run_are_not_overwritten(desk: Path) -> None:
    import make_update

    Path("g.pt").write_text("of an earlier run")
    with pytest.raises(FileExistsError):
        make_update.main()
    assert Path("g.pt").read_text() == "of an earlier run"


@pytest.mark.parametrize("page", ["README.md", "docs/audit.md"])
def test_an_update_is_audited(desk: Path, page: str) -> None:
    """As it stands there, with one attack and one evaluation in place of two minutes."""
    result = call(
        page,
        "gradward audit --model resnet18 --global g.pt",
        "--evaluations",
        "1",
        "--attack",
        "features",
    )
    assert result.exit_code == 0, result.output
    audit = json.loads(Path("audit/audit.json").read_text())
    assert [attack["attack"] for attack in audit["attacks"]] == ["features"]
    assert Path("audit/features/side-by-side.png").is_file()


def test_an_update_is_audited_in_python(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradward.attacks import AttackSpec

    quick = partial(
        gradward.audit.audit_update, budget=Budget(evaluations=1), attacks=[AttackSpec("features")]
    )
    monkeypatch.setattr(gradward.audit, "audit_update", quick)
    exec(scripts("docs/audit.md")[0], {})
    assert Path("audit/audit.json").is_file()


def test_data_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, str(ROOT / "docs/examples/make_own_data.py")], check=True)
    settings = json.loads(Path("gradward.json").read_text())
    settings["data"]["chest-xray"] = settings["data"].pop("ward")
    Path("gradward.json").write_text(json.dumps(settings))
    result = call("README.md", "gradward data chest-xray")
    assert result.exit_code == 0, result.output
    assert "120 images" in result.output


def test_the_recipe_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    executed: list[Sequence[str]] = []
    monkeypatch.setattr(AuditRecipe, "execute", lambda self, env: executed.append(env.clients))
    exec(scripts("docs/attach.md")[0], {})
    assert executed == [["north", "south", "east"]]
    assert (tmp_path / "jobs/wards/app/config/config_fed_server.json").is_file()


def test_an_audit_is_attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "client_api"))
    from net import Net
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe

    script = str(ROOT / "tests" / "client_api" / "train.py")
    FedAvgRecipe(
        name="their_job", model=Net(), min_clients=2, num_rounds=1, train_script=script
    ).export(str(tmp_path))
    result = call("docs/attach.md", "gradward attach")
    assert result.exit_code == 0, result.output
    assert "auditor" in Path("their_job_audited/app/config/config_fed_server.json").read_text()


def test_a_job_is_exported_without_code(tmp_path: Path) -> None:
    (command,) = {c for c in commands("docs/deployment.md") if c.startswith("gradward export")}
    words = shlex.split(command.replace("/tmp/quickstart", str(tmp_path / "quickstart")))
    assert CliRunner().invoke(main, words[1:]).exit_code == 0
    assert not list((tmp_path / "quickstart").rglob("custom"))


def test_the_attack_of_the_page_recovers() -> None:
    environment: dict[str, Any] = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "docs" / "examples"), str(ROOT / "custom")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", scripts("docs/extending.md")[0]],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    gains = dict(re.findall(r"^(\w+) recovered [-\d.]+, gain ([-\d.]+)$", done.stdout, re.M))
    assert float(gains["SquaresByAdam"]) > 0.2 and float(gains["matching"]) > 0.5
