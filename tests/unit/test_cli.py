"""What a person meets at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gradward.cli import main
from gradward.flare.simulator import RunError, set_seed, sites_of
from tests.unit.stored_runs import write_demo_run

ROOT = Path(__file__).parents[2]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_data_tells_counts_licence_and_checksum() -> None:
    result = call("data", "histology", "--site", "site-2")
    assert result.exit_code == 0
    assert "training        32 images" in result.output and "sha256:" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "moon"], "there is no data set 'moon'"),
        (["data", "histology", "--site", "charite"], "charite"),
        (["run", "{empty}"], "is not a job folder"),
        (["run", "{job}", "--workspace", "{full}"], "choose another --workspace"),
        (["report", "{empty}"], "there is no leakage.jsonl"),
    ],
)
def test_mistakes_are_named_without_a_traceback(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    places = {
        "empty": tmp_path / "empty",
        "full": tmp_path / "full",
        "job": ROOT / "jobs" / "quickstart",
    }
    places["empty"].mkdir()
    places["full"].mkdir()
    (places["full"] / "thesis.txt").write_text("do not delete")
    result = call(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == 1
    assert words in result.output and "Traceback" not in result.output
    assert (places["full"] / "thesis.txt").exists()


def test_a_report_ends_with_a_verdict_on_each_site_and_says_how_rounds_count(
    tmp_path: Path,
) -> None:
    result = call("report", str(write_demo_run(tmp_path)))
    words = " ".join(result.output.split())
    assert "site-1 Leaks: images can be recognised in what the server rebuilt" in words
    assert "site-2 Not recovered by these attacks" in words and "site-3 Not known" in words
    assert words.index("Not known") < words.index("Records ")
    assert "Rounds count from 0." in words


def test_broken_site_settings_are_named(tmp_path: Path) -> None:
    file = tmp_path / "gradward.json"
    file.write_text("[")
    result = call("data", "histology", "--site-settings", str(file))
    assert result.exit_code == 1 and "gradward.json, line 1, column 2 is not JSON" in result.output


def test_sites_are_the_jobs_own_unless_a_number_is_asked() -> None:
    job = ROOT / "jobs" / "cxr_high_risk"
    assert sites_of(job, None) == ["site-9", "site-1", "site-2", "site-3"]
    assert sites_of(job, 2) == ["site-9", "site-1"]
    assert sites_of(job, 6)[4:] == ["site-4", "site-5"]


def test_seed_is_set_on_both_sides(tmp_path: Path) -> None:
    import shutil

    job = tmp_path / "job"
    shutil.copytree(ROOT / "jobs" / "quickstart", job)
    set_seed(job, 42)
    for side in ("server", "client"):
        text = (job / "app" / "config" / f"config_fed_{side}.json").read_text()
        experiment = next(c for c in json.loads(text)["components"] if c["id"] == "experiment")
        assert experiment["args"]["seed"] == 42
    for file in job.glob("*/config/*.json"):
        file.write_text("{}")
    with pytest.raises(RunError, match="seed"):
        set_seed(job, 1)
