"""A job without code of its own names no code that the party has not allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace

from gradward.flare.auditor import InversionAuditor
from gradward.flare.experiment import JobError, experiment_of
from gradward.flare.own_code import require_allowed_attacks

from .fake_engine import FakeEngine
from .flare_desk import experiment


class Party(FakeEngine):
    """A party whose workspace is NVFlare's own."""

    def get_workspace(self) -> Any:
        return Workspace(str(self.root))


def job(root: Path, model: str, *, byoc: bool = False, allowed: tuple[str, ...] = ()) -> FLContext:
    for folder in ("local", "startup", "job-1"):
        (root / folder).mkdir(exist_ok=True)
    (root / "job-1" / "meta.json").write_text(json.dumps({"byoc": byoc}))
    (root / "local" / "resources.json").write_text(json.dumps({"class_allow_list": [*allowed]}))
    fl_ctx = FLContext()
    engine = Party(root, {"experiment": experiment(model=model)})
    fl_ctx.set_prop(ReservedKey.ENGINE, engine, private=True, sticky=False)
    fl_ctx.set_prop(ReservedKey.RUN_NUM, "job-1", private=True, sticky=False)
    return fl_ctx


def test_no_command_passes_for_a_network(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"'os.system' is not allowed here.*class_allow_list"):
        experiment_of(job(tmp_path, "os:system"), "experiment")


def test_without_the_jobs_meta_nothing_is_allowed(tmp_path: Path) -> None:
    fl_ctx = job(tmp_path, "net:Net", byoc=True)
    (tmp_path / "job-1" / "meta.json").unlink()
    with pytest.raises(JobError, match="not allowed"):
        experiment_of(fl_ctx, "experiment")


def test_own_networks_need_the_right_or_the_list(tmp_path: Path) -> None:
    experiment_of(job(tmp_path, "net:Net", byoc=True), "experiment")
    experiment_of(job(tmp_path, "net:Net", allowed=("net.Net",)), "experiment")
    experiment_of(job(tmp_path, "net:Net", allowed=("net.",)), "experiment")
    experiment_of(job(tmp_path, "bn_cnn"), "experiment")


def test_own_attacks_need_the_right_or_the_list(tmp_path: Path) -> None:
    attacks = [{"name": "matching"}, {"path": "mine.Attack"}]
    with pytest.raises(JobError, match=r"mine\.Attack"):
        require_allowed_attacks(attacks, job(tmp_path, "bn_cnn"))
    require_allowed_attacks(attacks, job(tmp_path, "bn_cnn", allowed=("mine.Attack",)))
    require_allowed_attacks(attacks[:1], job(tmp_path, "bn_cnn"))


def test_an_auditor_takes_no_word_that_hides_a_path_from_nvflare() -> None:
    hidden = {"path": "mine.Attack", "config_type": "dict"}
    with pytest.raises(ValueError, match="config_type"):
        InversionAuditor([hidden], {"evaluations": 1})
