"""A site's own log of what the audit asked and what left: ``answers.log``, a line of JSON each."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.shareable import Shareable

from gradward.flare.journal import note
from gradward.flare.rounds import write_private
from gradward.report.site_folder import ANSWERS, OVERFLOW

LOCK = "answers.lock"
# Refusals are written out up to here (some 30,000); later ones are counted, and the last kept.
MOST_BYTES = 16 * 2**20
# What a server may write into the log at most: it chooses its name, the attack's and the round.
MOST_LETTERS = 64
_MOST_COUNT = 10**9
_KEPT = "gradward_asked"
# Entries of a request, and what they are called in the log beside the scores of the same names.
_DESCRIBED = {
    "round": "round",
    "attack": "attack",
    "images": "asked_images",
    "control": "asked_control",
}


class AnswerLog:
    """Keeps every answer and every refusal of one job, for the site's privacy officer.

    An entry says when, who asked (the server's name as it gives it, the job's submitter), for what
    (round, attack, shape of the pictures), what became of it, and, of an answer, every scalar that
    left.
    """

    def __init__(self, job_folder: Path) -> None:
        """Args: the site's private folder of this job."""
        self._folder = job_folder

    def answer(self, asked: Mapping[str, Any], scalars: Mapping[str, Any]) -> None:
        """Enter an answer, before it leaves.

        Raises:
            OSError: it cannot be written; the answer may not leave.
        """
        note(self._folder / ANSWERS, {**asked, "status": "ok", "reason": "", **scalars})

    def refusal(self, asked: Mapping[str, Any], reason: str) -> None:
        """Enter a refusal; of more than a log can hold, the number and the last one.

        Raises:
            OSError: it cannot be written.
        """
        entry = {**asked, "status": "refused", "reason": reason}
        journal = self._folder / ANSWERS
        if not journal.exists() or journal.stat().st_size < MOST_BYTES:
            note(journal, entry)
            return
        with locked(self._folder):
            file = self._folder / OVERFLOW
            counted = 0
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                counted = int(json.loads(file.read_text(encoding="utf-8"))["refusals"])
            write_private(file, json.dumps({"refusals": counted + 1, "last": entry}))


@contextlib.contextmanager
def locked(job_folder: Path) -> Iterator[None]:
    """Hold the door's files alone.

    A server can have several scoring tasks carried out at the same time, by auxiliary messages, and
    the simulator may run one site in two processes.
    """
    descriptor = os.open(job_folder / LOCK, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def describe_request(shareable: Shareable, fl_ctx: FLContext) -> dict[str, Any]:
    """Return who asks for what, for the log; bounded, whatever the message holds.

    Returns:
        ``asked_by``, ``submitted_by`` and, as far as the message says so, ``round``, ``attack``,
        ``asked_images`` and ``asked_control`` (type and shape). Of a task that a filter emptied,
        what :func:`keep_description` kept.
    """
    kept = fl_ctx.get_prop(_KEPT)
    if isinstance(kept, dict):
        return dict(kept)
    peer = fl_ctx.get_peer_context()
    meta = fl_ctx.get_prop(FLContextKey.JOB_META)
    described: dict[str, Any] = {
        "asked_by": _short(peer.get_identity_name() if peer else None),
        "submitted_by": _short(
            meta.get(JobMetaKey.SUBMITTER_NAME) if isinstance(meta, dict) else None
        ),
    }
    try:
        data = dict(from_shareable(shareable).data)
    except Exception:
        # The scorer says what is wrong with the message; here it only has no more to say.
        return described
    for name, told_as in _DESCRIBED.items():
        if name in data:
            described[told_as] = _short(data[name])
    return described


def keep_description(shareable: Shareable, fl_ctx: FLContext) -> None:
    """Leave the description of a task for whoever enters its refusal; it never travels."""
    fl_ctx.set_prop(_KEPT, describe_request(shareable, fl_ctx), private=True, sticky=False)


def _short(value: Any) -> Any:
    """Return a value as the log may hold it."""
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"[:MOST_LETTERS]
    if type(value) is int and abs(value) < _MOST_COUNT:
        return value
    if isinstance(value, str):
        return str(value)[:MOST_LETTERS]
    return f"a {type(value).__name__}"[:MOST_LETTERS]
