"""``make poc``, ``poc/submit.sh``, the admin console and ``make poc-stop``, twice in a row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from nvflare.recipe import ProdEnv

from gradward.report.records import read_records

from ..integration.harness import records_of, simulate, tensorboard_scalars
from .federation import (
    ADMIN,
    LEAD,
    SITES,
    Poc,
    environment,
    processes_of,
    run,
    scores_of,
    short_recipe,
    tiny_job,
)

JOB_ID = "([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"


def short_job(folder: Path) -> Path:
    """One round of the quickstart."""
    job = tiny_job(folder / "job")
    job.workflow(num_rounds=1)
    return job.write()


@pytest.fixture(scope="module")
def poc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Poc]:
    federation = Poc(tmp_path_factory.mktemp("poc"))
    try:
        said = federation.script("start.sh")
        assert "Ready." in said
        yield federation
    finally:
        federation.script("stop.sh")


@pytest.fixture(scope="module")
def submitted(poc: Poc, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    job = tiny_job(tmp_path_factory.mktemp("job"))
    said = poc.script("submit.sh", job.folder)
    (folder,) = poc.results
    return folder / "workspace", said


def test_a_submitted_job_is_followed_and_reported(submitted: tuple[Path, str]) -> None:
    folder, said = submitted
    assert re.search(r"quickstart: (training|auditing), round \d of 2", said)
    assert "site-1" in said and "Recovered" in said
    assert "<html" in (folder / "report" / "index.html").read_text()


def test_every_site_has_tensorboard_files(submitted: tuple[Path, str]) -> None:
    folder, _ = submitted
    for site in SITES:
        scalars = tensorboard_scalars(folder / "tb_events" / site)
        assert [step for step, _ in scalars["train/steps"]] == [0, 1]
        assert any(tag.startswith("leakage/") for tag in scalars)


def test_the_figures_are_those_of_the_simulator(
    submitted: tuple[Path, str], tmp_path: Path
) -> None:
    finished = simulate(tiny_job(tmp_path / "job"), tmp_path / "run", SITES, {"threads": 1})
    simulated = scores_of(records_of(finished))
    submitted_scores = scores_of(list(read_records(submitted[0] / "leakage.jsonl")))
    assert simulated.keys() == submitted_scores.keys() and len(simulated) == 12
    for key, scores in simulated.items():
        for name, value in scores.items():
            assert submitted_scores[key][name] == pytest.approx(value, abs=0.02), (key, name)


def test_the_interactive_console_runs_a_job(poc: Poc, tmp_path: Path) -> None:
    """Typed as docs/deployment.md shows it."""
    job = short_job(tmp_path)
    console = pexpect.spawn(
        str(poc.kits / ADMIN / "startup" / "fl_admin.sh"),
        env=environment(),
        encoding="utf-8",
        timeout=90,
        dimensions=(50, 200),
    )
    try:
        console.expect("> $")
        console.sendline("check_status server")
        console.expect("Registered clients: 3")
        console.expect("Done")
        console.sendline(f"submit_job {job}")
        console.expect(f"Submitted job: {JOB_ID}")
        assert console.match is not None
        name = console.match.group(1)
        console.expect("Done")
        for _ in range(90):
            console.sendline(f"list_jobs {name[:8]}")
            if console.expect(["FINISHED:COMPLETED", "Done"]) == 0:
                break
            console.expect(pexpect.TIMEOUT, timeout=2)
        else:
            raise AssertionError("the job did not end")
        console.sendline(f"download_job {name}")
        console.expect("Done", timeout=120)
        console.sendline("bye")
        console.expect(pexpect.EOF)
    finally:
        console.close(force=True)
    (found,) = poc.kits.rglob(f"{name}/workspace/leakage.jsonl")
    assert {record.site for record in read_records(found)} == set(SITES)


def test_nvflares_own_command_runs_a_job(poc: Poc, tmp_path: Path) -> None:
    home = str(poc.folder / "home")
    said = run(["nvflare", "job", "submit", "-j", short_job(tmp_path)], HOME=home)
    found = re.search(JOB_ID, said)
    assert found is not None, said
    name = found.group(1)
    run(["nvflare", "job", "monitor", name, "--timeout", "200"], HOME=home)
    run(["nvflare", "job", "download", name, "-o", tmp_path], HOME=home)
    (file,) = tmp_path.rglob("leakage.jsonl")
    assert {record.site for record in read_records(file)} == set(SITES)


def test_a_recipe_runs_in_production(poc: Poc) -> None:
    env = ProdEnv(startup_kit_location=str(poc.kits / LEAD), username=LEAD, login_timeout=30)
    ended = short_recipe().execute(env)
    result = ended.get_result(timeout=200)
    assert result is not None and ended.get_status() == "FINISHED:COMPLETED"
    (file,) = Path(result).rglob("leakage.jsonl")
    assert {record.site for record in read_records(file)} == set(SITES)


def test_it_stops_and_starts_again(poc: Poc, tmp_path: Path) -> None:
    assert "Stopped." in poc.script("stop.sh")
    assert processes_of(poc.kits) == []
    assert "Ready." in poc.script("start.sh")
    poc.script("submit.sh", tiny_job(tmp_path / "job").folder)
    assert len(poc.results) == 2 and (poc.results[-1] / "workspace" / "leakage.jsonl").is_file()
