"""A job's way through a running federation, as the lead of a study sees it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvflare.apis.job_def import JobMetaKey, RunStatus
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InternalError,
    InvalidJobDefinition,
    MonitorReturnCode,
    NoConnection,
    SessionClosed,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from gradward.flare.status import STATS_GROUP

POLL_SECONDS = 2.0
CONNECT_SECONDS = 30.0
START_SECONDS = 15.0


class SubmissionError(RuntimeError):
    """The job could not be submitted or followed to its end; says why and what to do."""


@dataclass(frozen=True)
class Submitted:
    """What came of a submitted job.

    Attributes:
        job: NVFlare's id.
        folder: of its records, TensorBoard files and report on this machine.
        status: how it ended, in NVFlare's words. ``FINISHED:ABNORMAL`` is also a job that did all
            its work but lost a site on the way.
    """

    job: str
    folder: Path
    status: str

    @property
    def completed(self) -> bool:
        """Whether all parties came to their end in order."""
        return self.status == RunStatus.FINISHED_COMPLETED.value


def submit_job(
    job: Path,
    kit: Path,
    out: Path,
    *,
    timeout: float = 0.0,
    watch: Callable[[dict[str, Any]], None] = lambda status: None,
    accepted: Callable[[str], None] = lambda job: None,
) -> Submitted:
    """Submit a job folder, follow it to its end and fetch what it left.

    Args:
        job: its folder.
        kit: an administrator's startup kit, the folder that holds ``startup``.
        out: folder that gets a folder named by the job's id.
        timeout: seconds until the waiting ends, while the job goes on; 0 for no limit.
        watch: told the auditor's status every two seconds while the job runs.
        accepted: told the job's id once the server has it.

    Raises:
        SubmissionError: the kit cannot be used, the job was refused or took too long, or the server
            is gone.
    """
    user = _user_of(kit)
    try:
        session = new_secure_session(user, str(kit), timeout=CONNECT_SECONDS)
    except (NoConnection, AuthenticationError, OSError, ValueError) as error:
        raise SubmissionError(
            f"the server of {kit} does not answer {user!r} ({type(error).__name__}): is the "
            "federation running, and is this the kit of its last provisioning?"
        ) from None
    try:
        return _carry_through(session, job, out, timeout, watch, accepted)
    except AuthorizationError:
        raise SubmissionError(
            f"{user!r} has no right to submit {job}: take the kit of a lead or project_admin, or "
            "ask the server's operator for the right in its local/authorization.json"
        ) from None
    except (NoConnection, SessionClosed, InternalError) as error:
        raise SubmissionError(
            f"the server no longer answers ({type(error).__name__}: {error}); what becomes of the "
            "job it will tell with `list_jobs`"
        ) from None
    finally:
        session.close()


def _carry_through(
    session: Session,
    job: Path,
    out: Path,
    timeout: float,
    watch: Callable[[dict[str, Any]], None],
    accepted: Callable[[str], None],
) -> Submitted:
    with tempfile.TemporaryDirectory() as scratch:
        # NVFlare writes its signatures into the folder that it submits.
        copy = Path(scratch) / job.resolve().name
        shutil.copytree(job, copy)
        try:
            name = session.submit_job(str(copy))
        except InvalidJobDefinition as error:
            raise SubmissionError(f"{job} was refused: {error}") from None
    accepted(name)

    started: float | None = None

    def follow(session: Session, name: str, meta: Mapping[str, Any]) -> bool:
        nonlocal started
        if meta.get(JobMetaKey.STATUS.value) == RunStatus.RUNNING.value:
            started = started or time.monotonic()
            # Before its engine is up the job's process answers such a question with a traceback.
            if time.monotonic() - started > START_SECONDS:
                watch(_status_of(session, name))
        return True

    code, meta = session.monitor_job_and_return_job_meta(name, timeout, POLL_SECONDS, follow)
    if code == MonitorReturnCode.TIMEOUT:
        raise SubmissionError(
            f"job {name} is still running after {timeout:g} s; it goes on, and "
            f"`nvflare job monitor {name}` follows it"
        )
    status = (meta or {}).get(JobMetaKey.STATUS.value, "unknown")
    # What a failed job left is what tells why.
    return Submitted(name, _fetch(session, name, out), str(status))


def _status_of(session: Session, name: str) -> dict[str, Any]:
    try:
        return dict(session.show_stats(name, "server")["server"][STATS_GROUP])
    except Exception:
        # Between two of its states a job has no statistics; the next look will.
        return {}


def _fetch(session: Session, name: str, out: Path) -> Path:
    """Download a job's workspace into ``out/<id>``, in place of what an earlier call left."""
    out.mkdir(parents=True, exist_ok=True)
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    fetched = Path(session.download_job_result(name, str(out.resolve())))
    workspace = fetched / "workspace"
    return workspace if workspace.is_dir() else fetched


def _user_of(kit: Path) -> str:
    file = kit / "startup" / "fed_admin.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["admin"]["username"])
    except (OSError, ValueError, KeyError, TypeError):
        raise SubmissionError(
            f"{kit} is no administrator's startup kit: {file.name} is missing or damaged"
        ) from None
