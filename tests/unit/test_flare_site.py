"""Where a site finds its data, settings and private folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.private.fed.simulator.simulator_const import SimulatorConstants

from gradward.flare.site import (
    SiteSettingsError,
    open_site,
    read_settings,
    record_private_error,
)


def context(root: Path, site: str = "site-1", job: str = "job-7") -> Any:
    workspace = SimpleNamespace(
        get_root_dir=lambda: str(root), get_run_dir=lambda job_id: str(root / job_id)
    )
    (root / job).mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(
        get_identity_name=lambda: site,
        get_job_id=lambda: job,
        get_engine=lambda: SimpleNamespace(get_workspace=lambda: workspace),
    )


def settings(root: Path, **values: Any) -> None:
    (root / "local").mkdir(parents=True, exist_ok=True)
    (root / "local" / "gradward.json").write_text(json.dumps(values))


def test_a_site_entry_goes_over_the_top_level(tmp_path: Path) -> None:
    settings(tmp_path, device="cpu", threads=2, sites={"site-2": {"threads": 3}})
    assert read_settings(tmp_path / "local", "site-1")["threads"] == 2
    assert read_settings(tmp_path / "local", "site-2")["threads"] == 3


def test_audits_compute_on_the_servers_device_unless_it_lists_others(tmp_path: Path) -> None:
    assert open_site(context(tmp_path)).audit_devices == ("cpu",)
    settings(tmp_path, audit_devices=["cpu", "cpu:0"])
    assert open_site(context(tmp_path)).audit_devices == ("cpu", "cpu:0")


def test_private_root_is_in_the_kit_and_closed_to_others(tmp_path: Path) -> None:
    site = open_site(context(tmp_path))
    assert site.private == tmp_path / "gradward"
    assert site.job_folder.stat().st_mode & 0o077 == 0


def test_simulated_sites_have_a_private_root_outside_the_workspace(tmp_path: Path) -> None:
    root = tmp_path / "ws" / "site-1"
    site = open_site(context(root, job=SimulatorConstants.JOB_NAME))
    assert site.private == tmp_path / "ws.private" / "site-1"


def test_a_new_simulation_starts_with_an_empty_memory(tmp_path: Path) -> None:
    fl_ctx = context(tmp_path / "ws" / "site-1", job=SimulatorConstants.JOB_NAME)
    memory = open_site(fl_ctx).job_folder / "answers.json"
    memory.write_text("[]")
    assert open_site(fl_ctx).job_folder.joinpath("answers.json").exists(), "same run: kept"
    marker = tmp_path / "ws" / "site-1" / SimulatorConstants.JOB_NAME / "gradward_run"
    marker.unlink()
    assert not open_site(fl_ctx).job_folder.joinpath("answers.json").exists(), "new run: empty"


def test_a_real_job_keeps_its_memory_whatever_is_in_the_run_folder(tmp_path: Path) -> None:
    memory = open_site(context(tmp_path)).job_folder / "answers.json"
    memory.write_text("[]")
    assert open_site(context(tmp_path)).job_folder.joinpath("answers.json").exists()


def test_environment_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(tmp_path, device="cuda:63")
    monkeypatch.setenv("GRADWARD_DEVICE", "cpu")
    monkeypatch.setenv("GRADWARD_PRIVATE", str(tmp_path / "elsewhere"))
    site = open_site(context(tmp_path))
    assert site.device == "cpu"
    assert site.private == tmp_path / "elsewhere" / "site-1"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dta": {}}, "unknown entries"),
        ({"device": "cuda:63"}, "CUDA devices are"),
        ({"device": "abacus"}, "not known"),
        ({"audit_devices": "cpu"}, "audit_devices"),
        ({"audit_devices": []}, "must be a list of devices"),
        (
            {"audit_devices": [None]},
            "must be a list of devices",
        ),
        ({"audit_devices": ["cpu", "cuda:63"]}, "are visible; correct 'audit_devices'"),
        ({"threads": 0}, "threads"),
        ({"data": []}, "data"),
        ({"scoring": {"max_answers": -1}}, "max_answers"),
        ({"scoring": {"enabled": "no"}}, "enabled"),
        ({"scoring": {"limit": 3}}, "scoring"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    settings(tmp_path, **values)
    with pytest.raises(SiteSettingsError, match=words):
        open_site(context(tmp_path))


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "gradward.json").write_text("{")
    with pytest.raises(SiteSettingsError, match=r"gradward\.json is not readable"):
        open_site(context(tmp_path))


def test_errors_without_end_do_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradward.flare.site.MOST_ERROR_BYTES", 1000)
    site = open_site(context(tmp_path))
    for number in range(100):
        try:
            raise RuntimeError(f"error {number}")
        except RuntimeError:
            record_private_error(site)
    text = (site.job_folder / "errors.log").read_text()
    assert "error 0" in text and len(text) < 2000


def test_relative_paths_are_refused(tmp_path: Path) -> None:
    settings(tmp_path, data={"hospital": {"format": "npz", "path": "x.npz"}})
    with pytest.raises(SiteSettingsError, match="absolute"):
        open_site(context(tmp_path)).dataset_spec("hospital")
