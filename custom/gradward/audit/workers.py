"""Processes that take one task after the other, each with a device and a torch thread of its own.

``concurrent.futures`` has no way to end a task that runs, and gives up every other one when a
process dies: a long attack could not be stopped, and one update too large for the memory would
take all others with it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import torch

from gradward.audit.facts import AuditError

Task = TypeVar("Task")
Reply = TypeVar("Reply")

# A forked process cannot use a GPU, and may hang on a lock of a thread that it has not got.
_CONTEXT = multiprocessing.get_context("spawn")


def check_device(name: str) -> str:
    """Return the name of a device that is there.

    Raises:
        AuditError: it is not.
    """
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):
        raise AuditError(f"there is no device {name!r} here; choose cpu, or cuda:0") from None
    return name


def devices_of_workers(workers: int | None, devices: Sequence[str]) -> list[str]:
    """Return the device of each worker, each in turn.

    Args:
        workers: their number; None is one a device.
        devices: at least one.

    Raises:
        AuditError: a device is not there, or would have no worker.
    """
    if isinstance(devices, str) or not devices:
        raise AuditError(f"devices must be a list of at least one, got {devices!r}")
    for device in devices:
        check_device(device)
    number = len(devices) if workers is None else workers
    if isinstance(number, bool) or not isinstance(number, int) or number < len(devices):
        raise AuditError(
            f"workers must be an integer of at least the number of devices, {len(devices)}, "
            f"got {workers!r}"
        )
    return [devices[worker % len(devices)] for worker in range(number)]


def run_in_workers(
    work: Callable[[Task, str], Reply], tasks: Sequence[Task], devices: Sequence[str]
) -> Generator[tuple[Task, Reply | None], None, None]:
    """Do all tasks and hand over each reply as it comes; a worker holds one task at a time.

    Close the generator to end what is still running.

    Args:
        work: called with a task and a device in a worker; both ways values are pickled.
        tasks: in the order in which they are begun.
        devices: one a worker; a worker takes the next task when it has done one.

    Yields:
        A task with its reply, or with None where its worker died.

    Raises:
        AuditError: ``work`` cannot be sent, or no worker could begin.
    """
    try:
        packed = pickle.dumps(work)
    except Exception as error:
        raise AuditError(
            f"the network cannot be sent to worker processes ({error}); define its class at the "
            "top level of a module, without lambdas"
        ) from None
    waiting = deque(tasks)
    workers: list[_Worker[Task]] = []
    begun = False
    try:
        for device in devices[: len(tasks)]:
            workers.append(_Worker(packed, device))
        while workers:
            for connection in wait([worker.connection for worker in workers]):
                worker = next(one for one in workers if one.connection is connection)
                done, reply = worker.task, None
                try:
                    reply = worker.receive()
                    begun = True
                except EOFError:
                    worker.end()
                    workers.remove(worker)
                    if not begun:
                        raise AuditError(_NOT_BEGUN) from None
                    if waiting and done is not None:
                        workers.append(_Worker(packed, worker.device))
                else:
                    if waiting:
                        worker.give(waiting.popleft())
                    else:
                        worker.end()
                        workers.remove(worker)
                if done is not None:
                    yield done, reply
        # The last workers could not be started again.
        for task in waiting:
            yield task, None
    finally:
        for worker in workers:
            worker.end()


_NOT_BEGUN = (
    "a worker process ended before it began: it imports the calling script, which must be a file "
    'and must do this below if __name__ == "__main__":'
)


class _Worker(Generic[Task]):
    """The parent's side of one process; its first word, None, says that it listens."""

    def __init__(self, packed: bytes, device: str) -> None:
        self.device = device
        self.task: Task | None = None
        self._packed: bytes | None = packed
        self.connection, theirs = _CONTEXT.Pipe()
        # Its arguments must be short: of a process that dies before it has read them, a long rest
        # would never be written, and the parent would wait for that.
        self._process = _CONTEXT.Process(
            target=_serve, args=(theirs, device), daemon=True, name="gradward-audit"
        )
        with _without_interrupts():
            self._process.start()
        theirs.close()

    def give(self, task: Task) -> None:
        """Send a task, after what is to be done with all; :meth:`receive` tells of a death."""
        self.task = task
        with suppress(OSError):
            if self._packed is not None:
                self.connection.send_bytes(self._packed)
                self._packed = None
            # Plain pickle: multiprocessing's own would put tensors into shared memory.
            self.connection.send_bytes(pickle.dumps(task))

    def receive(self) -> Any:
        """Return the reply.

        Raises:
            EOFError: the worker died.
            AuditError: it could not begin.
        """
        try:
            reply = self.connection.recv()
        except OSError:
            raise EOFError from None
        if isinstance(reply, _CannotBegin):
            raise AuditError(str(reply))
        return reply

    def end(self) -> None:
        """Kill the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self.connection.close()


class _CannotBegin(Exception):
    """What a worker answers that cannot read what it was sent."""


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that never see Ctrl-C, which a terminal sends to all: the parent ends them.

    A signal's mask is inherited, so that this holds while a process is still importing.
    """
    # It starts with the first process otherwise, and would clear the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, device: str) -> None:
    """Do tasks until the parent ends this process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # What a network prints must not come between the lines of --json.
    os.dup2(2, 1)
    torch.set_num_threads(1)
    # Without it CUDA's matrix products may differ from run to run; read when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    connection.send(None)
    try:
        work = pickle.loads(connection.recv_bytes())
    except Exception as error:
        connection.send(
            _CannotBegin(
                f"the network cannot be loaded in a worker process ({type(error).__name__}: "
                f"{error}); define its class in a module that can be imported"
            )
        )
        return
    with suppress(EOFError):
        while True:
            connection.send(work(pickle.loads(connection.recv_bytes()), device))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
