"""A job goes on where NVFlare's task monitor would have died."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task, TaskCompletionStatus
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable

from gradward.flare.workflow import survive_double_removal


class Engine:
    @contextmanager
    def new_context(self) -> Iterator[FLContext]:
        yield FLContext()


def communicator_with_a_task_fetched_twice(done: list[str]) -> WFCommServer:
    communicator = WFCommServer()
    communicator._engine = Engine()
    task = Task(
        name="train", data=Shareable(), task_done_cb=lambda task, fl_ctx: done.append(task.name)
    )
    fetched = ClientTask(Client("site-1", "token"), task)
    task.client_tasks = [fetched, fetched]
    task.completion_status = TaskCompletionStatus.OK
    communicator._tasks = [task]
    communicator._client_task_map = {fetched.id: fetched}
    return communicator


def test_a_task_that_two_processes_of_a_site_fetched_ends_all_the_same() -> None:
    done: list[str] = []
    with pytest.raises(KeyError):  # NVFlare's own behaviour: the day it changes, drop ours
        communicator_with_a_task_fetched_twice(done).check_tasks()
    assert done == []
    communicator = communicator_with_a_task_fetched_twice(done)
    survive_double_removal(SimpleNamespace(communicator=communicator))
    communicator.check_tasks()
    assert done == ["train"]
    assert not communicator._tasks and not communicator._client_task_map
