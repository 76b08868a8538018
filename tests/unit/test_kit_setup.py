"""What a party's kit holds after ``gradward configure``."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from gradward.flare.allow_list import NEEDED_CLASSES
from gradward.flare.kit_setup import KitError, set_up_kit

POLICIES = Path(__file__).parents[2] / "poc" / "site-policies"
SITE: dict[str, Any] = {
    "class_allow_list": ["nvflare.app_common.executors.ModelLearner"],
    "allow_log_streaming": True,
    "components": [
        {"id": "resource_manager", "path": "x.GPUResourceManager", "args": {"num_of_gpus": 0}}
    ],
}
SERVER: dict[str, Any] = {
    "snapshot_persistor": {
        "path": "x",
        "args": {"storage": {"path": "y", "args": {"root_dir": "/tmp/nvflare/snapshot-storage"}}},
    },
    "components": [
        {"id": "job_manager", "path": "z", "args": {"uri_root": "/tmp/nvflare/jobs-storage"}}
    ],
}


def kit(folder: Path, role: str = "client") -> Path:
    made = folder / "kit"
    (made / "startup").mkdir(parents=True)
    (made / "local").mkdir()
    (made / "startup" / f"fed_{role}.json").write_text("{}")
    default = SITE if role == "client" else SERVER
    (made / "local" / "resources.json.default").write_text(json.dumps(default))
    return made


def local(made: Path, name: str = "resources.json") -> dict[str, Any]:
    return dict(json.loads((made / "local" / name).read_text()))


def test_a_site_allows_our_classes_beside_nvflares_and_streams_no_log(tmp_path: Path) -> None:
    made = kit(tmp_path)
    set_up_kit(made, gpus=2, gpu_memory=8)
    resources = local(made)
    assert set(resources["class_allow_list"]) == {*SITE["class_allow_list"], *NEEDED_CLASSES}
    assert resources["allow_log_streaming"] is False
    (manager,) = resources["components"]
    assert manager["args"] == {"num_of_gpus": 2, "mem_per_gpu_in_GiB": 8}


def test_a_second_call_adds_nothing_twice_and_keeps_what_was_there(tmp_path: Path) -> None:
    made = kit(tmp_path)
    settings = tmp_path / "gradward.json"
    settings.write_text(json.dumps({"device": "cpu", "scoring": {"max_answers": 5}}))
    set_up_kit(made, settings=settings)
    set_up_kit(made, policy=POLICIES / "strict")
    assert len(local(made)["class_allow_list"]) == len(NEEDED_CLASSES) + 1
    strict = json.loads((POLICIES / "strict" / "gradward.json").read_text())
    assert local(made, "gradward.json") == {"device": "cpu", **strict}, "the policy goes over all"
    assert local(made, "privacy.json")["default_scope"] == "strict"


def test_a_servers_jobs_leave_the_folder_that_all_users_read(tmp_path: Path) -> None:
    made = kit(tmp_path, "server")
    set_up_kit(made)
    resources, storage = local(made), made / "storage"
    assert stat.S_IMODE(storage.stat().st_mode) == 0o700
    assert resources["components"][0]["args"]["uri_root"] == str(storage / "jobs")
    kept = resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"]
    assert kept == str(storage / "snapshots")


def test_a_store_that_somebody_chose_stays(tmp_path: Path) -> None:
    made = kit(tmp_path, "server")
    chosen = json.loads(json.dumps(SERVER))
    chosen["components"][0]["args"]["uri_root"] = "/srv/jobs"
    (made / "local" / "resources.json").write_text(json.dumps(chosen))
    set_up_kit(made)
    assert local(made)["components"][0]["args"]["uri_root"] == "/srv/jobs"


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda made: (made / "local" / "resources.json.default").unlink(), "is not there"),
        (lambda made: (made / "local" / "resources.json").write_text("["), "no JSON object"),
        (lambda made: (made / "startup").rename(made / "elsewhere"), "no startup kit"),
        (
            lambda made: (made / "local" / "resources.json").write_text('{"components": []}'),
            "has no component 'resource_manager'",
        ),
    ],
)
def test_a_kit_that_cannot_be_used_is_named(tmp_path: Path, break_it: Any, words: str) -> None:
    made = kit(tmp_path)
    break_it(made)
    with pytest.raises(KitError, match=words):
        set_up_kit(made)


def test_a_policy_is_a_sites(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="no site's kit"):
        set_up_kit(kit(tmp_path, "server"), policy=POLICIES / "strict")


def test_a_folder_without_a_policy_changes_nothing_of_it(tmp_path: Path) -> None:
    made = kit(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(KitError, match=r"gradward\.json is not there"):
        set_up_kit(made, policy=tmp_path / "empty")
    assert not (made / "local" / "privacy.json").exists()
