"""A provisioned federation: TLS, no code in jobs, and one site with a policy of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gradward.flare.submission import SubmissionError, Submitted

from ..integration.harness import records_of
from .federation import BIN, RESEARCHER, SITES, Provisioned, run, tiny_job


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provisioned]:
    """Site-1 trains on perturbed images only; the others let themselves be audited."""
    provisioned = Provisioned(tmp_path_factory.mktemp("provisioned"))
    provisioned.provision()
    provisioned.configure({"site-1": "strict", "site-2": "audit-only", "site-3": "audit-only"})
    provisioned.preflight("server")
    try:
        provisioned.start()
        yield provisioned
    finally:
        provisioned.stop()


@pytest.fixture(scope="module")
def finished(federation: Provisioned, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    job = tiny_job(tmp_path_factory.mktemp("job"), custom=False)
    return federation.submit(job.folder)


def test_a_job_without_code_runs_where_byoc_is_forbidden(finished: Submitted) -> None:
    assert finished.completed
    scored = {record.site for record in records_of(finished) if record.status == "ok"}
    assert scored == {"site-2", "site-3"}


def test_the_strict_site_sends_no_raw_update(finished: Submitted) -> None:
    of_site = [record for record in records_of(finished) if record.site == "site-1"]
    assert of_site and {record.status for record in of_site} == {"absent"}
    log = (finished.folder / "log.txt").read_text()
    assert "Contribution from site-2 ACCEPTED" in log
    assert "Contribution from site-1 ACCEPTED" not in log


def test_the_strict_site_says_why(federation: Provisioned, finished: Submitted) -> None:
    log = (federation.kits / "site-1" / finished.job / "log.txt").read_text()
    assert "trains on perturbed images only" in log


def test_who_may_not_submit_is_told_so(federation: Provisioned, tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "job", custom=False)
    with pytest.raises(SubmissionError, match="no right to submit"):
        federation.submit(job.folder, RESEARCHER)


def test_a_job_with_code_is_refused(federation: Provisioned, tmp_path: Path) -> None:
    ended = federation.submit(tiny_job(tmp_path / "job").folder)
    assert ended.status == "FINISHED:FAILED_TO_RUN"


@pytest.mark.parametrize("party", SITES)
def test_a_sites_kit_passes_nvflares_own_check(federation: Provisioned, party: str) -> None:
    assert "PASSED" in federation.preflight(party)


@pytest.mark.parametrize("party", ["server", *SITES])
def test_the_doctor_finds_nothing_missing(federation: Provisioned, party: str) -> None:
    run([BIN / "gradward", "doctor", federation.kits / party])
