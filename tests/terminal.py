"""A terminal to run commands in, and somebody at it who presses Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
import uuid
from pathlib import Path

import gradward

CTRL_C = b"\x03"


class Terminal:
    """A command in a terminal of its own, as a shell starts it.

    Args:
        arguments: of the Python interpreter.
        environment: besides this process's.
    """

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._mark = f"GRADWARD_TEST_MARK={uuid.uuid4()}"
        name, value = self._mark.split("=")
        self._screen, terminal = pty.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(gradward.__file__).parents[1]),
                "TERM": "xterm",
                "COLUMNS": "200",
                name: value,
                **environment,
            },
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(terminal)

    def wait_for(self, pattern: str, seconds: float = 300) -> None:
        """Read until the screen has shown ``pattern``."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.seen):
            assert time.monotonic() < deadline, self.seen
            assert self._read(), f"it ended before: {self.seen}"

    def press(self, keys: bytes) -> None:
        """Type; the terminal makes an interrupt of all its processes of Ctrl-C."""
        os.write(self._screen, keys)

    def signal(self, kind: signal.Signals) -> None:
        """Send a signal to the command's process group, as a batch system does."""
        os.killpg(self.process.pid, kind)

    def end(self, seconds: float = 120) -> int:
        """Read to the end and return the exit code."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, self.seen
        code = self.process.wait(timeout=30)
        os.close(self._screen)
        return code

    def left_behind(self, seconds: float = 20) -> list[int]:
        """Processes that the command started, whatever their session, and that outlive it."""
        deadline = time.monotonic() + seconds
        while (found := self._marked()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _read(self) -> bool:
        ready, _, _ = select.select([self._screen], [], [], 1.0)
        if not ready:
            return True
        try:
            part = os.read(self._screen, 65536)
        except OSError:  # how Linux tells that nobody is left at the other end
            return False
        self.seen += part.decode(errors="replace")
        return bool(part)

    def _marked(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Tests that run in the background ignore Ctrl-C, and their children would, too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
