"""NVFlare's simulator as a program that ends, with all its processes, when its starter is gone.

A run that is killed outright can end nothing itself, and the simulator, in a session of its own,
would compute on for hours. It is told by a pipe that only the starter holds open, on every POSIX
system; nothing need be polled.

It is run by its path, not as a module of the package: a job may bring a package of its own in
``app/custom``, which would come too late here if this one was imported already.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def _end_with(starter: int) -> None:
    """Wait until the other end of the pipe is closed, then kill the process group.

    The attack workers and the sites have sessions of their own: the former see their own pipe
    closed and clear the spool, the latter look for their parent once a second.
    """
    while os.read(starter, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Run NVFlare's command line; the first argument is the number of the pipe's open end."""
    starter = int(sys.argv.pop(1))
    threading.Thread(target=_end_with, args=(starter,), daemon=True).start()
    # As with `python -m`; the folder of this file holds modules that are nobody else's business.
    sys.path[0] = ""
    from nvflare.cli import main as nvflare

    nvflare()


if __name__ == "__main__":
    main()
