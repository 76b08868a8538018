"""A site and a server that are killed in the middle of a round, and come back by themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nvflare.fuel.flare_api.api_spec import InternalError
from nvflare.fuel.flare_api.flare_api import new_secure_session

from gradward.flare.submission import SubmissionError, Submitted, submit_job
from gradward.report.status import not_finished, read_status

from ..integration.harness import records_of
from .federation import LEAD, SITES, Provisioned, tiny_job


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provisioned]:
    provisioned = Provisioned(tmp_path_factory.mktemp("comes_back"))
    provisioned.provision()
    provisioned.configure({})
    try:
        provisioned.start()
        yield provisioned
    finally:
        provisioned.stop()


def job_of_rounds(folder: Path, rounds: int) -> Path:
    job = tiny_job(folder / "job", custom=False)
    job.workflow(num_rounds=rounds, wait_time_after_min_received=10)
    job.audit(score_timeout=20)
    return job.write()


@contextmanager
def killing(federation: Provisioned, party: str) -> Iterator[threading.Event]:
    """Kill a party as soon as the next job is in its second round; the event tells that it was."""
    server, done, over = federation.kits / "server", threading.Event(), threading.Event()
    earlier = set(server.iterdir())

    def watch() -> None:
        while not over.wait(0.05):
            for folder in set(server.iterdir()) - earlier:
                if read_status(folder).get("round", 0) >= 1:
                    federation.kill(party)
                    done.set()
                    return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield done
    finally:
        over.set()
        watcher.join()


@pytest.fixture(scope="module")
def without_a_site(federation: Provisioned, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    job = job_of_rounds(tmp_path_factory.mktemp("job"), 6)
    kit, out = federation.kits / LEAD, federation.folder / "results"
    with killing(federation, "site-3") as killed:
        ended = submit_job(job, kit, out, timeout=300)
    assert killed.is_set()
    return ended


def test_the_others_go_on_without_a_killed_site(without_a_site: Submitted) -> None:
    records = [record for record in records_of(without_a_site) if not record.control]
    for site in ("site-1", "site-2"):
        assert {r.round for r in records if (r.site, r.status) == (site, "ok")} == set(range(6))


def test_each_update_of_it_is_on_record_once(without_a_site: Submitted) -> None:
    records = records_of(without_a_site)
    assert len({record.key for record in records}) == len(records)
    lost = {r.round: r.status for r in records if r.site == "site-3" and not r.control}
    assert set(lost) == set(range(6)) and lost[5] == "absent"
    assert not_finished(without_a_site.folder) is None


def test_nvflare_restores_no_job_of_a_killed_server(
    federation: Provisioned, without_a_site: Submitted, tmp_path: Path
) -> None:
    """The server is back within seconds; its job is not, and its folder says what is missing."""
    federation.await_sites()
    job, kit = job_of_rounds(tmp_path / "first", 20), federation.kits / LEAD
    with killing(federation, "server"), pytest.raises(SubmissionError, match="no longer answers"):
        submit_job(job, kit, tmp_path / "out", timeout=120)
    federation.await_sites()
    session = new_secure_session(LEAD, str(kit), timeout=30)
    try:
        (latest,) = [item for item in session.list_jobs() if item["status"] == "RUNNING"]
        name = latest["job_id"]
        folder = federation.kits / "server" / name
        before = (folder / "log.txt").stat().st_mtime
        time.sleep(10)
        assert (folder / "log.txt").stat().st_mtime == before, "nobody works on it"
        with pytest.raises(InternalError, match="not running"):
            session.abort_job(name)
    finally:
        session.close()
    assert "not on record" in (not_finished(folder) or "")
    ended = submit_job(job_of_rounds(tmp_path / "again", 1), kit, tmp_path / "out", timeout=200)
    scored = {record.site for record in records_of(ended) if record.status == "ok"}
    assert scored == set(SITES)
