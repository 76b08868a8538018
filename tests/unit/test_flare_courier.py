"""Questions outlive the workflow that carries them."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from nvflare.apis.controller_spec import Task, TaskCompletionStatus
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import make_reply
from nvflare.apis.signal import Signal

from gradward.flare.audit_attack import SpooledScores
from gradward.flare.courier import Courier
from gradward.flare.protocol import SCORE_NAMES, ScoreReply, ScoreRequest


class FakeEngine:
    @contextmanager
    def new_context(self) -> Any:
        yield FLContext()


class FakeWorkflow:
    """Keeps the tasks it was given until the test ends them."""

    def __init__(self) -> None:
        self.tasks: list[tuple[Task, list[str]]] = []

    def send(self, task: Task, fl_ctx: FLContext, targets: list[str]) -> None:
        self.tasks.append((task, targets))

    def end(self, status: TaskCompletionStatus, result: Any = None) -> None:
        task, _ = self.tasks.pop(0)
        if result is not None:
            task.result_received_cb(SimpleNamespace(result=result), FLContext())
        task.completion_status = status
        task.task_done_cb(task, FLContext())


REQUEST = ScoreRequest("site-1", 0, "batchnorm", np.zeros((1, 1, 8, 8), np.float32), None, "sha")
GOOD = ScoreReply("ok", real=dict.fromkeys(SCORE_NAMES, 0.5), membership="known")


def start() -> tuple[Courier, list[tuple[ScoreReply | None, str]]]:
    answers: list[tuple[ScoreReply | None, str]] = []
    courier = Courier(timeout=5)
    courier.submit(
        SpooledScores("site-1", lambda: REQUEST),
        lambda reply, problem: answers.append((reply, problem)),
    )
    return courier, answers


def test_a_request_waits_for_a_workflow_and_goes_to_its_site_alone() -> None:
    courier, answers = start()
    workflow = FakeWorkflow()
    courier.bind(workflow, FakeEngine())
    assert [targets for _, targets in workflow.tasks] == [["site-1"]]
    workflow.end(TaskCompletionStatus.OK, GOOD.to_shareable())
    assert answers == [(GOOD, "")]


def test_what_a_workflow_takes_down_with_it_is_sent_by_the_next() -> None:
    courier, answers = start()
    first, second = FakeWorkflow(), FakeWorkflow()
    courier.bind(first, FakeEngine())
    courier.close()
    first.end(TaskCompletionStatus.CANCELLED)
    assert not answers
    courier.bind(second, FakeEngine())
    second.end(TaskCompletionStatus.OK, GOOD.to_shareable())
    assert answers == [(GOOD, "")]


def test_release_waits_for_the_answer_under_way() -> None:
    courier, answers = start()
    workflow = FakeWorkflow()
    courier.bind(workflow, FakeEngine())
    timer = threading.Timer(0.3, lambda: workflow.end(TaskCompletionStatus.OK, GOOD.to_shareable()))
    timer.start()
    started = time.monotonic()
    courier.release(Signal())
    assert answers and time.monotonic() - started >= 0.25


def test_silence_and_nonsense_are_answers_with_a_reason() -> None:
    for status, result, words in (
        (TaskCompletionStatus.TIMEOUT, None, "did not answer"),
        (TaskCompletionStatus.CLIENT_DEAD, None, "did not answer"),
        (TaskCompletionStatus.OK, make_reply(ReturnCode.TASK_UNKNOWN), "TASK_UNKNOWN"),
        (TaskCompletionStatus.OK, make_reply(ReturnCode.OK), "no data object"),
    ):
        courier, answers = start()
        workflow = FakeWorkflow()
        courier.bind(workflow, FakeEngine())
        workflow.end(status, result)
        assert answers[0][0] is None and words in answers[0][1]


def test_a_task_that_cannot_be_sent_is_told() -> None:
    class Broken(FakeWorkflow):
        def send(self, task: Task, fl_ctx: FLContext, targets: list[str]) -> None:
            raise ValueError("invalid target")

    courier, answers = start()
    courier.bind(Broken(), FakeEngine())
    assert answers[0][0] is None and "could not be sent" in answers[0][1]


def test_a_site_has_one_request_at_a_time() -> None:
    """Its time to answer runs from when a request is sent: the last of many would have none."""
    answers: list[str] = []
    courier = Courier(timeout=5)
    for site, attack in (("site-1", "a"), ("site-1", "b"), ("site-2", "c"), ("site-1", "d")):
        question = SpooledScores(site, lambda: REQUEST)
        courier.submit(question, lambda reply, problem, of=attack: answers.append(of))
    workflow = FakeWorkflow()
    courier.bind(workflow, FakeEngine())
    assert [targets for _, targets in workflow.tasks] == [["site-1"], ["site-2"]]
    for _ in range(4):
        workflow.end(TaskCompletionStatus.OK, GOOD.to_shareable())
    assert sorted(answers) == ["a", "b", "c", "d"] and answers.index("a") < answers.index("b")


def test_a_request_is_read_when_its_turn_has_come() -> None:
    """Pictures of all rounds would not fit in memory where scoring waits for the last workflow."""
    read: list[str] = []
    courier = Courier(timeout=5)
    for name in ("first", "second"):
        question = SpooledScores("site-1", lambda of=name: read.append(of) or REQUEST)
        courier.submit(question, lambda reply, problem: None)
    assert read == []
    workflow = FakeWorkflow()
    courier.bind(workflow, FakeEngine())
    assert read == ["first"]
    workflow.end(TaskCompletionStatus.OK, GOOD.to_shareable())
    assert read == ["first", "second"]


def test_many_requests_that_cannot_be_read_do_not_exhaust_the_stack() -> None:
    def gone() -> ScoreRequest:
        raise FileNotFoundError

    problems: list[str] = []
    courier = Courier(timeout=5)
    for _ in range(2000):
        courier.submit(
            SpooledScores("site-1", gone), lambda reply, problem: problems.append(problem)
        )
    courier.bind(FakeWorkflow(), FakeEngine())
    assert len(problems) == 2000 and "could not be sent" in problems[-1]
