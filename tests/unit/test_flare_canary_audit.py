"""A canary audit on the server: ordered beside the training, attacked and scored at home."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.controller_spec import TaskCompletionStatus
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from gradward.data import PublicSet, load_public_set
from gradward.flare.audit_run import AuditRun
from gradward.flare.auditor import InversionAuditor
from gradward.flare.canary import CANARY_IMAGES_META, CANARY_TASK, pinned_canaries
from gradward.flare.canary_protocol import CHECKSUM_HEADER, CanaryOrder
from gradward.flare.canary_scoring import score_canaries
from gradward.flare.experiment import Experiment
from gradward.flare.protocol import ScoreRequest
from gradward.flare.states import MessageError
from gradward.report.records import LeakageLog, LeakageRecord, read_records

from .test_flare_audit_run import audit_runs, wait_for
from .test_flare_courier import FakeEngine, FakeWorkflow

WEIGHTS = {"weight": np.ones(3, np.float32), "count": np.array(2.5)}


def answer(images: Any = 1, data: dict[str, Any] | None = None) -> Shareable:
    meta = {} if images is None else {CANARY_IMAGES_META: images}
    arrays = {"weight": np.zeros(3, np.float32)} if data is None else data
    return DXO(DataKind.WEIGHT_DIFF, arrays, meta).to_shareable()


@pytest.fixture(scope="module")
def public() -> PublicSet:
    return load_public_set(
        {"format": "embedded"}, name="histology", image_size=(32, 32), channels=3
    )


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., AuditRun]]:
    """Start runs of canaries."""
    with audit_runs(tmp_path, monkeypatch, subject="canary") as make:
        yield make


def ordered(run: AuditRun) -> FakeWorkflow:
    """Order one canary, and return the workflow that holds its task."""
    workflow = FakeWorkflow()
    run.courier.bind(workflow, FakeEngine())
    run.remember_global(3, WEIGHTS)
    run.order_canary("site-1", 3)
    wait_for(lambda: bool(workflow.tasks))
    return workflow


def records(tmp_path: Path) -> list[LeakageRecord]:
    return list(read_records(tmp_path / "leakage.jsonl"))


def test_a_canary_is_ordered_attacked_and_scored_without_another_question(
    start: Callable[..., AuditRun], tmp_path: Path, public: PublicSet
) -> None:
    recorded: list[LeakageRecord] = []
    run = start(recorded=recorded.append)
    workflow = ordered(run)
    ((task, targets),) = workflow.tasks
    assert (task.name, targets) == (CANARY_TASK, ["site-1"])
    sent = from_shareable(task.data).data
    assert task.data.get_header(AppConstants.CURRENT_ROUND) == 3
    assert task.data.get_header(CHECKSUM_HEADER) == public.checksum
    for name, value in WEIGHTS.items():
        assert sent[name].tobytes() == value.tobytes() and sent[name].dtype == value.dtype
    # The answer comes when the round is long over: its global weights are still there.
    run.round_done(3)
    workflow.end(TaskCompletionStatus.OK, answer(16))
    wait_for(lambda: run.open_audits == 0)
    real, control = records(tmp_path)
    assert {real.subject, control.subject} == {"canary"}
    assert (real.status, control.status) == ("ok", "ok")
    assert real.canaries == 9, "there are no more to stand in for 16 images"
    assert (real.gallery or 0) >= 100 and real.recovered is not None
    assert not workflow.tasks, "no site is asked to score"
    assert recorded == [real, control]
    spool = run._spool.folder
    wait_for(
        lambda: {f.name for f in spool.iterdir()} == {"prior.npy", "public.npz", "control.npz"}
    )


def test_a_site_is_asked_once_in_a_round(start: Callable[..., AuditRun], tmp_path: Path) -> None:
    run = start()
    workflow = ordered(run)
    run.order_canary("site-1", 3)
    workflow.end(TaskCompletionStatus.OK, answer())
    wait_for(lambda: run.open_audits == 0)
    run.order_canary("site-1", 3)
    assert run.open_audits == 0
    time.sleep(0.2)
    assert not workflow.tasks and len(records(tmp_path)) == 2


@pytest.mark.parametrize(
    ("status", "reply", "words"),
    [
        (TaskCompletionStatus.OK, make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR), "FILTER_ERROR"),
        (TaskCompletionStatus.TIMEOUT, None, "did not answer"),
        (TaskCompletionStatus.OK, make_reply(ReturnCode.OK), "no data object"),
        (TaskCompletionStatus.OK, answer(None), "of how many images"),
    ],
)
def test_what_a_site_does_not_send_is_on_record(
    start: Callable[..., AuditRun],
    tmp_path: Path,
    status: TaskCompletionStatus,
    reply: Shareable | None,
    words: str,
) -> None:
    run = start()
    ordered(run).end(status, reply)
    (record,) = records(tmp_path)
    assert (record.status, record.subject, record.round) == ("absent", "canary", 3)
    assert words in record.reason and run.open_audits == 0


def test_an_answer_after_the_end_changes_nothing(
    start: Callable[..., AuditRun], tmp_path: Path
) -> None:
    run = start()
    workflow = ordered(run)
    assert run.give_up("the job ended") == 1
    workflow.end(TaskCompletionStatus.OK, answer())
    time.sleep(0.3)
    (record,) = records(tmp_path)
    assert record.status == "unscored"
    assert not list(run._spool.folder.glob("3-site-1"))


def test_without_the_declared_public_images_no_site_is_asked(
    start: Callable[..., AuditRun], tmp_path: Path
) -> None:
    run = start(public_checksum="sha256:0")
    workflow = FakeWorkflow()
    run.courier.bind(workflow, FakeEngine())
    run.remember_global(3, WEIGHTS)
    run.order_canary("site-1", 3)
    wait_for(lambda: run.open_audits == 0)
    (record,) = records(tmp_path)
    assert record.status == "failed" and "checksum" in record.reason
    assert not workflow.tasks


@pytest.mark.parametrize("images", [None, 0, -1, True, 2.0, "2"])
def test_an_answer_must_count_its_images(images: Any) -> None:
    with pytest.raises(MessageError, match="how many images"):
        CanaryOrder.read_reply(answer(images))


@pytest.mark.parametrize(("stated", "taken"), [(4, 4), (-1, 0), (None, None)])
def test_an_answer_tells_its_steps_as_an_update_does(stated: Any, taken: int | None) -> None:
    meta = {CANARY_IMAGES_META: 1, MetaKey.NUM_STEPS_CURRENT_ROUND: stated}
    reply = DXO(DataKind.WEIGHT_DIFF, {"weight": np.zeros(3, np.float32)}, meta).to_shareable()
    assert CanaryOrder.read_reply(reply).steps == taken


# Scoring ------------------------------------------------------------------------------------------

EXPERIMENT = Experiment("bn_cnn", "histology", [32, 32], 3, 2, seed=7)


def request(images: torch.Tensor, control: torch.Tensor | None = None) -> ScoreRequest:
    of_control = None if control is None else control.numpy()
    return ScoreRequest("site-2", 0, "batchnorm", images.numpy(), of_control, "")


@pytest.mark.parametrize("n_images", [1, 4, 9, 20])
def test_a_perfect_reconstruction_is_fully_recovered(public: PublicSet, n_images: int) -> None:
    pinned = pinned_canaries(public, EXPERIMENT.seed, "site-2").images
    truths = torch.cat([pinned] * 3)[:n_images]
    flat = torch.full_like(truths, 0.5)
    reply = score_canaries(request(truths.flip(0), flat), n_images, EXPERIMENT, public)
    assert reply.status == "ok" and reply.real is not None and reply.control is not None
    assert reply.real["n_images"] == n_images
    assert reply.real["recovered"] == 1.0 and reply.real["reid"] == 1.0
    assert (reply.real["gallery"] or 0) >= 100
    assert (reply.control["recovered"] or 0.0) < 0.1


def test_other_canaries_are_not_the_ones_that_were_used(public: PublicSet) -> None:
    pinned = pinned_canaries(public, EXPERIMENT.seed, "site-2").images
    reply = score_canaries(request(pinned[1:2]), 1, EXPERIMENT, public)
    assert reply.real is not None and reply.real["recovered"] is not None
    assert reply.real["recovered"] < 0.5


def test_a_site_that_overstates_costs_the_server_no_memory(public: PublicSet) -> None:
    guesses = pinned_canaries(public, EXPERIMENT.seed, "site-2").images[:2]
    honest, liar = (
        score_canaries(request(guesses), number, EXPERIMENT, public) for number in (9, 10**12)
    )
    assert honest == liar


# The auditor --------------------------------------------------------------------------------------


class NotedRun:
    """What the auditor asks of a run."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.open_audits = 0

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *rest, **more: self.calls.append((name, *rest, *more.values()))

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


class Auditing:
    """An auditor in a round of two sites, of which one takes the training task."""

    def __init__(self, **arguments: Any) -> None:
        self.auditor = InversionAuditor([{"name": "batchnorm"}], {"evaluations": 5}, **arguments)
        self.run = NotedRun()
        self.auditor._run = self.run  # type: ignore[assignment]
        self.auditor._status = SimpleNamespace(update=lambda **values: None)  # type: ignore[assignment]
        clients = [SimpleNamespace(name=name) for name in ("site-1", "site-2")]
        self.engine = SimpleNamespace(
            get_clients=lambda: clients, fire_event=lambda *rest: None, new_context=FLContext
        )

    def fire(self, event: str, number: int, site: str | None = None, **props: Any) -> None:
        fl_ctx = FLContext()
        task = DXO(DataKind.WEIGHTS, data=dict(WEIGHTS)).to_shareable()
        task.set_header(AppConstants.CURRENT_ROUND, number)
        values = {
            ReservedKey.ENGINE: self.engine,
            AppConstants.CURRENT_ROUND: number,
            AppConstants.TRAIN_SHAREABLE: task,
            **props,
        }
        for key, value in values.items():
            fl_ctx.set_prop(key, value, private=True, sticky=False)
        if site is not None:
            peer = FLContext()
            peer.set_prop(ReservedKey.IDENTITY_NAME, site, private=False)
            fl_ctx.set_peer_context(peer)
        self.auditor.handle_event(event, fl_ctx)

    def round(self, number: int) -> None:
        self.fire(AppEventType.ROUND_STARTED, number)
        self.fire(AppEventType.BEFORE_TRAIN_TASK, number, "site-1")
        result = {AppConstants.TRAINING_RESULT: answer()}
        self.fire(AppEventType.AFTER_CONTRIBUTION_ACCEPT, number, "site-1", **result)
        self.fire(AppEventType.ROUND_DONE, number)


def test_with_canaries_no_update_of_the_training_is_captured() -> None:
    audit = Auditing(subject="canary")
    audit.round(0)
    assert audit.run.named("order_canary") == [("site-1", 0)]
    assert audit.run.named("submit") == []
    ((_, weights),) = audit.run.named("remember_global")
    np.testing.assert_array_equal(weights["weight"], WEIGHTS["weight"])
    ((site, number, reason, status),) = audit.run.named("reject")
    assert (site, number, status) == ("site-2", 0, "absent") and "no training task" in reason


def test_without_them_no_canary_is_ordered() -> None:
    audit = Auditing()
    audit.round(0)
    assert audit.run.named("order_canary") == [] and len(audit.run.named("submit")) == 1


def test_canaries_are_ordered_in_audited_rounds_of_audited_sites_only() -> None:
    audit = Auditing(subject="canary", every_n_rounds=2)
    audit.round(0)
    audit.round(1)
    audit.round(2)
    assert audit.run.named("order_canary") == [("site-1", 0), ("site-1", 2)]
    nobody = Auditing(subject="canary", sites=["site-2"])
    nobody.round(0)
    assert nobody.run.named("order_canary") == []


def test_an_unknown_subject_is_refused() -> None:
    with pytest.raises(ValueError, match="patients"):
        Auditing(subject="patients")


# Records ------------------------------------------------------------------------------------------


def test_a_log_keeps_live_and_canary_apart(tmp_path: Path) -> None:
    canary = LeakageRecord("j", 1, "site-1", 0, "batchnorm", False, "ok", subject="canary")
    log = LeakageLog(tmp_path / "leakage.jsonl")
    assert log.append(canary) and log.append(replace(canary, subject="live"))
    assert log.knows("canary", "site-1", 0, "batchnorm", 1)
    assert not log.append(canary)
    with pytest.raises(ValueError, match="subject"):
        replace(canary, subject="patients")
