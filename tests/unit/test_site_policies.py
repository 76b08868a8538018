"""The shipped policies, as NVFlare builds them from ``privacy.json`` and applies them to a job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.utils.task_utils import apply_filters
from nvflare.apis.workspace import Workspace
from nvflare.private.fed.app.fl_conf import create_privacy_manager
from nvflare.private.fed.client.client_engine_executor_spec import TaskAssignment
from nvflare.private.fed.client.client_runner import ClientRunner, ClientRunnerConfig, TaskRouter
from nvflare.private.privacy_manager import PrivacyManager, PrivacyService

from gradward.flare.close_scoring import CloseScoring
from gradward.flare.gate import LeakageGate
from gradward.flare.guard import PerturbationGuard
from gradward.flare.protocol import SCORE_TASK, ScoreReply, ScoreRequest
from gradward.flare.scorer import LeakageScorer
from gradward.flare.site import SiteSettingsError, open_site

from .flare_desk import Desk, experiment

POLICIES = Path(__file__).parents[2] / "poc" / "site-policies"
NAMES = ("audit-only", "certified", "guarded", "strict")
DATA, RESULT = "task_data_filters", "task_result_filters"


class PolicedDesk(Desk):
    """A site under one of the shipped policies, in a job that mentions no filter."""

    policy = ""
    manager: PrivacyManager

    def __post_init__(self) -> None:
        super().__post_init__()
        (self.root / "startup").mkdir()
        for file in (POLICIES / self.policy).iterdir():
            shutil.copy(file, self.root / "local" / file.name)
        self.manager = create_privacy_manager(Workspace(str(self.root)), names_only=False)

    def task(self, name: str, task_id: str = "task-1", scope: str | None = None) -> FLContext:
        fl_ctx = super().task(name, task_id)
        found = self.manager.get_scope(scope)
        for key, value in (
            (FLContextKey.SCOPE_OBJECT, found),
            (FLContextKey.EFFECTIVE_JOB_SCOPE_NAME, found.name if found else ""),
        ):
            fl_ctx.set_prop(key, value, private=True, sticky=False)
        return fl_ctx

    def passed(self, chain: str, message: Shareable, fl_ctx: FLContext) -> Shareable:
        """What is left of a message after the site's filters."""
        task = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        direction = FilterKey.IN if chain == DATA else FilterKey.OUT
        return apply_filters(chain, message, fl_ctx, {}, task, direction)

    def ask(self, **changes: Any) -> ScoreReply:
        """Send a scoring task through the site's filters, both ways."""
        images = np.zeros((1, 3, 32, 32), np.float32)
        request = ScoreRequest(self.site, 0, "batchnorm", images, None, "sha256:0")
        fl_ctx = self.task(SCORE_TASK)
        order = self.passed(DATA, request.to_shareable(), fl_ctx)
        reply = LeakageScorer().execute(SCORE_TASK, order, fl_ctx, Signal())
        return ScoreReply.from_shareable(self.passed(RESULT, reply, fl_ctx))


def desk_under(policy: str, folder: Path, **job: Any) -> PolicedDesk:
    kind = type("Desk", (PolicedDesk,), {"policy": policy})
    return kind(folder, experiment(**job))


def filters_of(desk: PolicedDesk) -> tuple[list[type[Filter]], list[type[Filter]]]:
    scope = desk.manager.get_scope(None)
    data, results = scope.task_data_filters, scope.task_result_filters
    assert not data[FilterKey.OUT] and not results[FilterKey.IN]
    return [type(f) for f in data[FilterKey.IN]], [type(f) for f in results[FilterKey.OUT]]


def test_every_policy_is_listed_here() -> None:
    assert tuple(sorted(path.name for path in POLICIES.iterdir() if path.is_dir())) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_and_is_the_only_scope(name: str, tmp_path: Path) -> None:
    desk = desk_under(name, tmp_path)
    assert desk.manager.is_policy_defined() and list(desk.manager.name_to_scopes) == [name]
    assert desk.manager.get_scope(None).name == name, "a job that names none gets it"
    site = open_site(desk.task("train"))
    closed = name in ("strict", "certified")
    assert site.scoring.enabled != closed
    assert site.perturbation.required == (name == "strict")
    assert site.certified.required == (name == "certified")
    expected: dict[str, tuple[list[type[Filter]], list[type[Filter]]]] = {
        "audit-only": ([], []),
        "guarded": ([], [PerturbationGuard]),
        "certified": ([CloseScoring], [PerturbationGuard]),
        "strict": ([CloseScoring], [PerturbationGuard, LeakageGate]),
    }
    assert filters_of(desk) == expected[name]
    PrivacyService.initialize(create_privacy_manager(Workspace(str(tmp_path)), names_only=True))
    try:
        assert PrivacyService.is_scope_allowed("") and PrivacyService.is_scope_allowed(name)
        assert not PrivacyService.is_scope_allowed("public"), "NVFlare refuses to deploy that"
    finally:
        PrivacyService.initialize(None)


def test_audit_only_lets_anything_train_and_scores(tmp_path: Path) -> None:
    desk = desk_under("audit-only", tmp_path)
    fl_ctx = desk.task("train")
    reply = desk.passed(RESULT, desk.answer(fl_ctx, perturbed=False), fl_ctx)
    assert reply.get_return_code() == ReturnCode.OK
    assert "policy" not in desk.ask().reason


@pytest.mark.parametrize("name", ["guarded", "strict", "certified"])
def test_a_job_without_any_defence_sends_nothing(name: str, tmp_path: Path) -> None:
    desk = desk_under(name, tmp_path)
    fl_ctx = desk.task("train")
    reply = desk.passed(RESULT, desk.answer(fl_ctx, perturbed=False), fl_ctx)
    assert reply.get_return_code() != ReturnCode.OK and "DXO" not in reply
    fl_ctx = desk.task("submit_model", "task-2")
    assert "DXO" not in desk.passed(RESULT, desk.answer(fl_ctx), fl_ctx)


def test_guarded_lets_a_perturbed_update_pass_and_scores(tmp_path: Path) -> None:
    desk = desk_under("guarded", tmp_path)
    fl_ctx = desk.task("train")
    assert desk.passed(RESULT, desk.answer(fl_ctx), fl_ctx).get_return_code() == ReturnCode.OK
    assert "policy" not in desk.ask().reason


def test_strict_attacks_a_perturbed_update_before_it_leaves(tmp_path: Path) -> None:
    desk = desk_under("strict", tmp_path, training={"batch_size": 8, "lr": 0.02, "steps": 1})
    fl_ctx = desk.task("train")
    assert desk.passed(RESULT, desk.answer(fl_ctx), fl_ctx).get_return_code() == ReturnCode.OK
    verdict = desk.journal("gate.log")[-1]
    assert verdict["verdict"] == "passed" and verdict["recovered"] < 0.1
    assert desk.journal("guard.log")[-1]["verdict"] == "passed"


def test_strict_withholds_what_its_attacks_cannot_judge(tmp_path: Path) -> None:
    desk = desk_under("strict", tmp_path, training={"batch_size": 8, "lr": 0.02, "steps": 65})
    fl_ctx = desk.task("train")
    assert desk.passed(RESULT, desk.answer(fl_ctx), fl_ctx).get_return_code() != ReturnCode.OK
    assert "no attack applies" in desk.journal("gate.log")[-1]["reason"]


@pytest.mark.parametrize("name", ["strict", "certified"])
@pytest.mark.parametrize("reopened", [False, True])
def test_no_reconstruction_reaches_the_executor(name: str, reopened: bool, tmp_path: Path) -> None:
    desk = desk_under(name, tmp_path)
    if reopened:
        # The filter closes the door by itself, also where gradward.json was forgotten.
        desk.settings()
    fl_ctx = desk.task(SCORE_TASK)
    images = np.full((1, 3, 32, 32), 0.25, np.float32)
    request = ScoreRequest(desk.site, 0, "batchnorm", images, None, "sha256:0").to_shareable()
    request.add_cookie(FLContextKey.TASK_ID, "task-1")
    request.add_cookie("picture", images)
    request.set_header("picture", images)
    order = desk.passed(DATA, request, fl_ctx)
    assert set(order) == {"__headers__"} and "0.25" not in repr(order)
    assert order.get_cookie_jar() == {FLContextKey.TASK_ID: "task-1"}, "by it an answer is matched"
    reply = desk.ask()
    assert reply.status == "refused" and reply.reason == "this site's policy closes scoring"
    entry = desk.journal("answers.log")[-1]
    assert (entry["status"], entry["asked_by"]) == ("refused", "server")
    assert (entry["round"], entry["attack"]) == (0, "batchnorm"), "what was asked is on record"
    assert entry["asked_images"] == "float32 (1, 3, 32, 32)"


def test_the_server_still_knows_which_task_the_refusal_answers(tmp_path: Path) -> None:
    """Through NVFlare's own client runner: a reply that matches no task has it sent for ever."""
    desk = desk_under("strict", tmp_path)
    images = np.zeros((1, 3, 32, 32), np.float32)
    order = ScoreRequest(desk.site, 0, "batchnorm", images, None, "sha256:0").to_shareable()
    cookies = {FLContextKey.TASK_ID: "task-7", ReservedHeaderKey.WORKFLOW: "train"}
    for name, value in cookies.items():
        order.add_cookie(name, value)
    fl_ctx = desk.task(SCORE_TASK)
    fl_ctx.get_peer_context().set_prop(ReservedKey.RUN_NUM, "job-1", private=False)
    router = TaskRouter()
    router.add_executor([SCORE_TASK], LeakageScorer())
    engine = fl_ctx.get_engine()
    engine.register_aux_message_handler = lambda **handler: None
    runner = ClientRunner({}, ClientRunnerConfig(router, {}, {}), "job-1", engine)
    reply = runner._process_task(TaskAssignment(SCORE_TASK, "task-7", order), fl_ctx)
    assert reply.get_cookie_jar() == cookies
    assert ScoreReply.from_shareable(reply).status == "refused"


def test_the_filter_leaves_other_tasks_and_the_server_alone(tmp_path: Path) -> None:
    desk = desk_under("strict", tmp_path)
    order = Shareable({"weights": 1})
    assert desk.passed(DATA, order, desk.task("train")) is order
    fl_ctx = desk.task(SCORE_TASK)
    fl_ctx.set_prop(FLContextKey.FILTER_DIRECTION, FilterKey.OUT, private=True, sticky=False)
    assert CloseScoring().process(order, fl_ctx) is order


def test_a_job_that_dodges_the_scope_is_refused_by_the_site(tmp_path: Path) -> None:
    """As it can between a change of ``privacy.json`` and the restart: NVFlare applies no filter."""
    desk = desk_under("guarded", tmp_path)
    fl_ctx = desk.task("train", scope="no-such-scope")
    reply = desk.answer(fl_ctx, perturbed=False)
    assert desk.passed(RESULT, reply, fl_ctx) is reply, "no filter ran"
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION and "DXO" not in reply
    with pytest.raises(SiteSettingsError, match="restart the site"):
        open_site(fl_ctx)


@pytest.mark.parametrize("scope", ["", 3, ["guarded"]])
def test_a_scope_that_is_no_name_closes_the_site(scope: Any, tmp_path: Path) -> None:
    desk = desk_under("guarded", tmp_path)
    settings = json.loads((tmp_path / "local" / "gradward.json").read_text())
    desk.settings(**(settings | {"scope": scope}))
    with pytest.raises(SiteSettingsError, match="'scope'"):
        open_site(desk.task("train"))
