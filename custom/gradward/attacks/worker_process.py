"""The parent's side of the attack worker: a subprocess that survives nothing and spoils nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradward

WORKER_MODULE = "gradward.attacks.worker"
NICENESS = 10


class WorkerError(RuntimeError):
    """The worker ended or did not answer; the next request gets a new one."""


class WorkerProcess:
    """One worker process, started again after it was lost."""

    def __init__(
        self,
        spool: Path,
        module: str = WORKER_MODULE,
        threads: int = 1,
        modules: Path | None = None,
    ) -> None:
        """Prepare; it starts with :meth:`start` or the first request.

        Args:
            spool: folder that the worker removes if its parent dies.
            module: module that is run.
            threads: CPU threads of its computations.
            modules: folder of the job's own modules, where a network may be; None for none.
        """
        self._modules = modules
        self._command = [sys.executable, "-m", module, "--spool", str(spool)]
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def start(self) -> None:
        """Start the process ahead of the first request.

        Raises:
            WorkerError: the worker was stopped.
            OSError: no process can be started.
        """
        self._running()

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Send one request and wait for its reply.

        Args:
            message: JSON values.
            timeout: seconds after which the worker is killed.

        Raises:
            WorkerError: it was killed, ended, or took longer than ``timeout``.
        """
        process = self._running()
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(timeout, expire)
        timer.daemon = True
        timer.start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):
            line = ""
        finally:
            timer.cancel()
        if line:
            return dict(json.loads(line))
        process.kill()
        code = process.wait()
        with self._lock:
            self._process = None
        if expired.is_set():
            raise WorkerError(f"the attack worker took longer than {timeout:.0f} s and was stopped")
        raise WorkerError(f"the attack worker ended unexpectedly (exit code {code})")

    def stop(self) -> None:
        """Kill the worker and start no other; a request under way raises."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _running(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._stopped:
                raise WorkerError("the attack worker was stopped at the end of the run")
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            return self._process

    def _start(self) -> subprocess.Popen[str]:
        # The package may have come with the job (app/custom), where no plain interpreter looks.
        package_root = str(Path(gradward.__file__).resolve().parent.parent)
        places = [package_root, os.environ.get("PYTHONPATH"), self._modules]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(place) for place in places if place),
            "OMP_NUM_THREADS": str(self._threads),
        }
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            # Whoever kills the parent's process group leaves the worker to clear the spool.
            start_new_session=True,
        )
        # Training comes first where both share a machine; the audit takes what is left.
        os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        return process
