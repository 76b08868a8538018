"""Carries the audit's questions to sites through whichever workflow is running."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from nvflare.apis.controller_spec import ClientTask, Task, TaskCompletionStatus
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.server_engine_spec import ServerEngineSpec
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from gradward.flare.states import MessageError

Reply = TypeVar("Reply")
Reply_co = TypeVar("Reply_co", covariant=True)


class Question(Protocol[Reply_co]):
    """What one site is asked, as a task."""

    @property
    def task(self) -> str:
        """Name of the task."""

    @property
    def site(self) -> str:
        """The only site that gets it."""

    def to_shareable(self) -> Shareable:
        """Return the task's data."""

    def read_reply(self, reply: Shareable) -> Reply_co:
        """Unpack the answer; raises MessageError for anything that is none."""


@dataclass
class _Parcel(Generic[Reply]):
    question: Question[Reply]
    answer: Callable[[Reply | None, str], None]
    reply: Reply | None = None
    problem: str = ""


class Courier:
    """A queue of questions that outlives the workflows which send them.

    A task lives only as long as its workflow: what is unsent when training ends is sent by the
    next workflow that binds itself. Each site has one question at a time, since its time to answer
    runs from when it is sent, and where all wait for the end of training they are many.
    """

    def __init__(self, timeout: float) -> None:
        """Args: seconds a site has to answer, its time of training included."""
        self._timeout = timeout
        self._lock = threading.RLock()
        self._waiting: deque[_Parcel[Any]] = deque()
        self._travelling: list[_Parcel[Any]] = []
        self._controller: Controller | None = None
        self._engine: ServerEngineSpec | None = None

    def submit(
        self, question: Question[Reply], answer: Callable[[Reply | None, str], None]
    ) -> None:
        """Send the question as soon as a workflow is bound and the site has answered the others.

        Args:
            question: for one site.
            answer: called once, with the reply, or with None and the reason why there is none.
        """
        with self._lock:
            self._waiting.append(_Parcel(question, answer))
        self._dispatch()

    def bind(self, controller: Controller, engine: ServerEngineSpec) -> None:
        """Send through ``controller`` from now on."""
        with self._lock:
            self._controller, self._engine = controller, engine
        self._dispatch()

    def release(self, abort_signal: Signal) -> None:
        """Send nothing more through the bound workflow and wait for what is under way.

        Ends after the answer time at the latest, since a task that ran out is done as well.
        """
        self.close()
        while self._travelling and not abort_signal.triggered:
            time.sleep(0.05)

    def close(self) -> None:
        """Send nothing more and wait for nothing."""
        with self._lock:
            self._controller = None

    def _dispatch(self) -> None:
        while True:
            with self._lock:
                controller, engine = self._controller, self._engine
                busy = {parcel.question.site for parcel in self._travelling}
                free = (parcel for parcel in self._waiting if parcel.question.site not in busy)
                parcel = next(free, None)
                if controller is None or engine is None or parcel is None:
                    return
                self._waiting.remove(parcel)
                self._travelling.append(parcel)
            try:
                self._send(controller, engine, parcel)
            except Exception as error:
                self._finish(parcel, f"the question could not be sent ({type(error).__name__})")

    def _send(self, controller: Controller, engine: ServerEngineSpec, parcel: _Parcel[Any]) -> None:
        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            result = client_task.result
            client_task.result = None
            code = result.get_return_code() if result is not None else ReturnCode.EMPTY_RESULT
            if code != ReturnCode.OK:
                parcel.problem = f"the site answered {code}"
                return
            try:
                parcel.reply = parcel.question.read_reply(result)
            except MessageError as error:
                parcel.problem = str(error)

        def done(task: Task, fl_ctx: FLContext) -> None:
            status = task.completion_status
            if parcel.reply is None and not parcel.problem:
                if status == TaskCompletionStatus.CANCELLED:
                    self._requeue(parcel)
                    return
                parcel.problem = f"the site did not answer ({status})"
            self._finish(parcel, parcel.problem)
            self._dispatch()

        task = Task(
            name=parcel.question.task,
            data=parcel.question.to_shareable(),
            timeout=int(self._timeout),
            result_received_cb=received,
            task_done_cb=done,
        )
        with engine.new_context() as fl_ctx:
            controller.send(task=task, fl_ctx=fl_ctx, targets=[parcel.question.site])

    def _requeue(self, parcel: _Parcel[Any]) -> None:
        with self._lock:
            self._travelling.remove(parcel)
            self._waiting.append(parcel)

    def _finish(self, parcel: _Parcel[Any], problem: str) -> None:
        with self._lock:
            self._travelling.remove(parcel)
        parcel.answer(parcel.reply, problem)
