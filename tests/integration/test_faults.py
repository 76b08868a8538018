"""One site's fault never ends the others' run, and nothing is dropped silently."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from skimage.data import immunohistochemistry

from gradward.flare.simulator import SimulatedRun
from gradward.report.records import LeakageRecord

from .harness import TINY_AUDIT, JobVariant, logs_of, records_of, simulate

MISSING, CORRUPT, NAN, FOREIGN, REFUSING, GOOD = (f"site-{i}" for i in range(1, 7))
ALL = (MISSING, CORRUPT, NAN, FOREIGN, REFUSING, GOOD)


def write_corrupt_hospital(folder: Path) -> None:
    folder.mkdir()
    patches = immunohistochemistry()
    entries = []
    for index in range(4):
        name = f"patient-doe-{index}.png"
        Image.fromarray(patches[:32, 32 * index : 32 * index + 32]).save(folder / name)
        entries.append({"image": name, "label": index % 2})
    whole = (folder / "patient-doe-2.png").read_bytes()
    (folder / "patient-doe-2.png").write_bytes(whole[: len(whole) // 2])
    lists = {"training": entries[:3], "validation": entries[3:], "testing": entries[3:]}
    (folder / "list.json").write_text(json.dumps(lists))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> SimulatedRun:
    """Six sites, five of them with a fault of their own."""
    base = tmp_path_factory.mktemp("faulty")
    write_corrupt_hospital(base / "corrupt")
    gone = {"format": "datalist", "path": str(base / "nowhere" / "list.json")}
    corrupt = {"format": "datalist", "path": str(base / "corrupt" / "list.json")}
    settings = {
        "sites": {
            MISSING: {"data": {"histology": gone}},
            CORRUPT: {"data": {"histology": corrupt}},
            REFUSING: {"scoring": {"enabled": False}},
        }
    }
    job = JobVariant.of("quickstart", base)
    job.experiment(per_site={})
    job.audit(**TINY_AUDIT)
    job.workflow(num_rounds=2, min_clients=2, wait_time_after_min_received=120)
    job.add_filter(
        "task_result_filters",
        ["train"],
        "federation_probes.SpoilUpdate",
        faults={NAN: "nan", FOREIGN: "other model"},
    )
    return simulate(job, base / "run", ALL, settings)


def of(run: SimulatedRun, site: str) -> list[LeakageRecord]:
    return [record for record in records_of(run) if record.site == site and not record.control]


def test_the_run_ends_well(faulty: SimulatedRun) -> None:
    assert faulty.exit_code == 0


def test_the_good_site_is_scored_in_every_round(faulty: SimulatedRun) -> None:
    assert [record.status for record in of(faulty, GOOD)] == ["ok", "ok"]


def test_a_missing_data_folder_is_told_and_recorded(faulty: SimulatedRun) -> None:
    records = of(faulty, MISSING)
    assert [record.status for record in records] == ["absent", "absent"]
    assert "histology" in logs_of(faulty) and "nowhere" not in logs_of(faulty)


def test_a_corrupt_image_is_told_without_its_name(faulty: SimulatedRun) -> None:
    assert [record.status for record in of(faulty, CORRUPT)] == ["absent", "absent"]
    logs = logs_of(faulty)
    assert "entry 2 of 'training'" in logs
    assert "patient-doe" not in logs and "doe-2" not in logs


def test_an_update_with_nan_is_recorded_as_failed(faulty: SimulatedRun) -> None:
    records = of(faulty, NAN)
    assert [record.status for record in records] == ["failed", "failed"]
    assert "not finite" in records[0].reason


def test_an_update_for_another_model_is_recorded_as_failed(faulty: SimulatedRun) -> None:
    records = of(faulty, FOREIGN)
    assert [record.status for record in records] == ["failed", "failed"]
    assert "other.weight" in records[0].reason or "model" in records[0].reason


def test_the_global_model_stays_finite(faulty: SimulatedRun) -> None:
    import torch

    file = next(faulty.folder.rglob("FL_global_model.pt"))
    state = torch.load(file, weights_only=True)["model"]
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in state.values())


def test_a_refused_scoring_task_is_recorded_with_its_reason(faulty: SimulatedRun) -> None:
    records = of(faulty, REFUSING)
    assert [record.status for record in records] == ["refused", "refused"]
    assert "policy" in records[0].reason


def test_a_killed_worker_spoils_only_its_own_audit(tmp_path: Path) -> None:
    job = JobVariant.of("quickstart", tmp_path)
    job.audit(**TINY_AUDIT | {"budget": {"evaluations": 3000}, "sites": ["site-2"]})
    job.workflow(num_rounds=2, min_clients=1)
    job.add("server", "federation_probes.KillWorker", folder=str(tmp_path))
    run = simulate(job, tmp_path / "run", ["site-2", "site-3"])
    assert run.exit_code == 0 and (tmp_path / "killed").exists()
    records = of(run, "site-2")
    assert [record.status for record in records] == ["failed", "ok"]
    assert "ended unexpectedly" in records[0].reason


def test_a_site_that_stops_answering_does_not_hold_the_others(tmp_path: Path) -> None:
    job = JobVariant.of("quickstart", tmp_path)
    job.audit(**TINY_AUDIT | {"score_timeout": 20})
    job.workflow(num_rounds=3, min_clients=1, train_timeout=25, wait_time_after_min_received=8)
    job.client["executors"][0]["executor"] = {
        "path": "federation_probes.StopAnswering",
        "args": {"site": "site-3", "from_round": 1},
    }
    run = simulate(job, tmp_path / "run", ["site-2", "site-3"])
    assert [record.status for record in of(run, "site-2")] == ["ok"] * 3
    statuses = {record.round: record.status for record in of(run, "site-3")}
    # The answer to round 0 may or may not have come before the site fell silent.
    assert statuses.pop(0) in ("ok", "unscored")
    assert statuses == {1: "absent", 2: "absent"}


def test_wrong_public_images_fail_the_audit_not_the_training(tmp_path: Path) -> None:
    job = JobVariant.of("quickstart", tmp_path)
    job.experiment(public_checksum="sha256:" + "0" * 64)
    job.audit(**TINY_AUDIT)
    job.workflow(num_rounds=1, min_clients=1)
    run = simulate(job, tmp_path / "run", ["site-2"])
    assert run.exit_code == 0
    records = of(run, "site-2")
    assert [record.status for record in records] == ["failed"]
    assert "checksum" in records[0].reason
    shutil.rmtree(run.folder)
