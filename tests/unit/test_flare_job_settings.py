"""``gradward run --set``: what is changed, where, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradward.flare.job_settings import SettingError, changed_job

JOBS = Path(__file__).parents[2] / "jobs"


def arguments(job: Path, config: str, name: str) -> dict[str, Any]:
    text = (job / config).read_text()
    found: list[dict[str, Any]] = []

    def look(item: dict[str, Any]) -> dict[str, Any]:
        if item.get("id") == name or str(item.get("path", "")).endswith(f".{name}"):
            found.append(item["args"])
        return item

    json.loads(text, object_hook=look)
    (only,) = found
    return only


def test_every_component_of_that_name_is_changed_in_a_copy() -> None:
    job = JOBS / "defense_comparison"
    before = {file: file.read_bytes() for file in job.rglob("*.json")}
    changes = ["UpdateNoise.fraction=0.5", "experiment.training.batch_size=4"]
    with changed_job(job, changes) as copy:
        assert copy.name == job.name
        noisy = "app_update_noise/config/config_fed_client.json"
        assert arguments(copy, noisy, "UpdateNoise") == {"fraction": 0.5}
        for config in (noisy, "app/config/config_fed_server.json"):
            training = arguments(copy, config, "experiment")["training"]
            assert training == {"batch_size": 4, "steps": 1, "lr": 0.02}
        told = arguments(copy, "app/config/config_fed_server.json", "RunLog")["other_defences"]
        (noise,) = [item for item in told if item["name"] == "UpdateNoise"]
        assert noise["settings"] == {"fraction": 0.5}, "the run's record must not say otherwise"
    assert before == {file: file.read_bytes() for file in job.rglob("*.json")}
    assert not copy.exists()


def test_an_argument_that_has_its_default_can_be_set_too() -> None:
    change = "perturbation.settings.mode=class"
    with changed_job(JOBS / "quickstart_defended", [change]) as copy:
        config = "app/config/config_fed_client.json"
        assert arguments(copy, config, "perturbation")["settings"] == {"mode": "class"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UpdateNoise.fraction=0.5", "no component 'UpdateNoise'; it has"),
        ("experiment.lr=0.5", "has no argument 'lr'; it has"),
        ("experiment.training.lr.x=0.5", "goes below 'lr'"),
        ("experiment=0.5", "COMPONENT.ARGUMENT=VALUE"),
        ("experiment.seed", "COMPONENT.ARGUMENT=VALUE"),
    ],
)
def test_what_fits_nothing_is_refused(change: str, words: str) -> None:
    with (
        pytest.raises(SettingError, match=words),
        changed_job(JOBS / "quickstart", [change]),
    ):
        pass
