"""The doctor, on kits that ``nvflare provision`` made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.fuel.utils.class_utils import instantiate_class, load_class

from gradward.cli import main
from gradward.flare.allow_list import NEEDED_CLASSES
from gradward.flare.doctor import ATTENTION, OK, PROBLEM, Finding, examine
from gradward.flare.doctor.machine import TESTED_NVFLARE

ROOT = Path(__file__).parents[2]
PATCH = ROOT / "poc" / "class-allow-list.json"
PROJECT = """
api_version: 4
name: clinics
participants:
  - {name: localhost, type: server, org: clinic, fed_learn_port: 18002, admin_port: 18003}
  - {name: site-1, type: client, org: clinic}
  - {name: admin@clinic.org, type: admin, org: clinic, role: project_admin}
builders:
  - path: nvflare.lighter.impl.workspace.WorkspaceBuilder
    args: {template_file: master_template.yml}
  - path: nvflare.lighter.impl.static_file.StaticFileBuilder
    args: {config_folder: config, scheme: http}
  - path: nvflare.lighter.impl.cert.CertBuilder
  - path: nvflare.lighter.impl.signature.SignatureBuilder
"""


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("provisioned")
    (folder / "project.yml").write_text(PROJECT)
    command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", "project.yml", "-w", "ws"]
    subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    return folder / "ws" / "clinics" / "prod_00"


class KitFolder:
    """A kit that a test may spoil."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.local = folder / "local"

    def write(self, name: str, content: Any) -> None:
        (self.local / name).write_text(json.dumps(content))

    def resources(self, **changes: Any) -> dict[str, Any]:
        content = json.loads((self.local / "resources.json.default").read_text()) | changes
        self.write("resources.json", content)
        return dict(content)

    def allow_ours(self) -> None:
        own = json.loads((self.local / "resources.json.default").read_text())["class_allow_list"]
        patch = json.loads(PATCH.read_text())["class_allow_list"]
        self.resources(class_allow_list=[*own, *patch], allow_log_streaming=False)

    def take(self, policy: str) -> None:
        for file in (ROOT / "poc" / "site-policies" / policy).iterdir():
            shutil.copy(file, self.local / file.name)

    def finding(self, topic: str, level: str | None = None) -> Finding:
        found = [f for f in examine(self.folder) if f.topic == topic]
        found = [f for f in found if level in (None, f.level)] or found
        assert found, f"nothing was said about {topic}"
        return found[0]

    def doctor(self) -> Result:
        return CliRunner().invoke(main, ["doctor", str(self.folder)])


@pytest.fixture
def site(provisioned: Path, tmp_path: Path) -> Iterator[KitFolder]:
    yield KitFolder(shutil.copytree(provisioned / "site-1", tmp_path / "site-1"))


@pytest.fixture
def server(provisioned: Path, tmp_path: Path) -> Iterator[KitFolder]:
    yield KitFolder(shutil.copytree(provisioned / "localhost", tmp_path / "localhost"))


# The allow list -----------------------------------------------------------------------------------


def classes_of_jobs() -> set[str]:
    def walk(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            if isinstance(part.get("path"), str):
                yield part["path"]
            part = list(part.values())
        if isinstance(part, list):
            for item in part:
                yield from walk(item)

    files = ROOT.glob("jobs/*/app*/config/*.json")
    return {path for file in files for path in walk(json.loads(file.read_text()))}


def test_the_patch_has_every_class_of_our_jobs_and_no_other_than_is_needed() -> None:
    listed = json.loads(PATCH.read_text())
    assert listed == {"class_allow_list": list(NEEDED_CLASSES)}
    used = classes_of_jobs()
    assert len(used) > 10
    assert used - set(DEFAULT_CLASS_ALLOW_LIST) <= set(NEEDED_CLASSES)
    assert not set(NEEDED_CLASSES) & set(DEFAULT_CLASS_ALLOW_LIST)
    for path in NEEDED_CLASSES:
        assert issubclass(load_class(path), FLComponent), path
    assert isinstance(instantiate_class("gradward.flare.scorer.LeakageScorer", {}), FLComponent)


@pytest.mark.parametrize("role", ["site", "server"])
def test_the_lines_to_add_are_named_and_are_enough(
    role: str, request: pytest.FixtureRequest
) -> None:
    kit: KitFolder = request.getfixturevalue(role)
    result = kit.doctor()
    assert result.exit_code == 1
    lines = [line.strip().rstrip(",") for line in result.output.splitlines()]
    named = [json.loads(line) for line in lines if line.startswith(('"gradward.', '"nvflare.'))]
    assert set(named) == set(NEEDED_CLASSES)
    allowed = kit.resources()["class_allow_list"]
    kit.resources(class_allow_list=[*allowed, *named])
    authorizer = ComponentPathAuthorizer()
    for path in classes_of_jobs():
        authorizer.authorize_component_config({"path": path}, workspace=Workspace(str(kit.folder)))
    assert kit.finding("allow list").level == OK
    kit.resources(class_allow_list=[*allowed, *named[1:]])
    assert named[0] in kit.finding("allow list").remedy
    with pytest.raises(UnsafeComponentError):
        authorizer.authorize_component_config(
            {"path": named[0]}, workspace=Workspace(str(kit.folder))
        )


@pytest.mark.parametrize(
    "changes", [{"class_allow_list": ["*"]}, {"class_list_enforcement_mode": "warn"}]
)
def test_a_list_that_allows_anything_is_told(site: KitFolder, changes: dict[str, Any]) -> None:
    site.resources(**changes)
    assert site.finding("allow list").level == ATTENTION


# A healthy kit, and what can be wrong with it -----------------------------------------------------


@pytest.mark.parametrize("policy", ["audit-only", "guarded", "certified", "strict"])
def test_a_site_under_one_of_our_policies_is_well(site: KitFolder, policy: str) -> None:
    site.allow_ours()
    site.take(policy)
    settings = json.loads((site.local / "gradward.json").read_text())
    site.write("gradward.json", settings | {"data": {"histology": {"format": "embedded"}}})
    result = site.doctor()
    assert result.exit_code == 0, result.output
    levels = {finding.topic: finding.level for finding in examine(site.folder)}
    told = {topic for topic, level in levels.items() if level != OK}
    assert told <= {"code of jobs", "packages"}, result.output
    assert policy in site.finding("privacy.json").text


def test_a_server_is_looked_at_as_a_server(server: KitFolder) -> None:
    server.allow_ours()
    assert server.doctor().exit_code == 0
    assert "server 'clinics'" in server.finding("gradward.json").text
    assert {"logs", "privacy.json"}.isdisjoint(f.topic for f in examine(server.folder))


def test_data_are_read_and_only_counted(site: KitFolder) -> None:
    missing = {"format": "datalist", "path": str(site.folder / "smith-jane" / "list.json")}
    site.write("gradward.json", {"data": {"histology": {"format": "embedded"}, "cxr": missing}})
    assert "1 training" in site.finding("data histology").text
    broken = site.finding("data cxr")
    assert broken.level == PROBLEM and "smith" not in broken.text + broken.remedy
    assert "data.cxr" in broken.remedy


def test_the_sites_own_entry_counts(site: KitFolder) -> None:
    site.write("gradward.json", {"device": "cpu", "sites": {"site-1": {"device": "cuda:63"}}})
    device = site.finding("device")
    assert device.level == PROBLEM and "cuda:63" in device.text
    site.write("gradward.json", {"sites": {"site-2": {"device": "cuda:63"}}})
    assert site.finding("device").level == OK


def test_audit_devices_that_are_not_there_are_a_problem(server: KitFolder) -> None:
    server.allow_ours()
    server.write("gradward.json", {"audit_devices": ["cpu", "cpu"]})
    assert server.finding("audit devices").text == "attack workers compute on cpu, cpu"
    assert server.doctor().exit_code == 0
    server.write("gradward.json", {"device": "cpu", "audit_devices": ["cpu", "cuda:63"]})
    found = server.finding("audit devices")
    assert found.level == PROBLEM and "'cuda:63'" in found.text
    assert "'audit_devices' in local/gradward.json" in found.text
    assert server.finding("device").level == OK and server.doctor().exit_code == 1


def test_gpus_that_are_offered_but_not_there_are_a_problem(site: KitFolder) -> None:
    resources = site.resources()
    resources["components"][0]["args"]["num_of_gpus"] = 99
    site.write("resources.json", resources)
    device = site.finding("device")
    assert device.level == PROBLEM and "99 GPUs are offered" in device.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scoring": {"max_answers": "many"}}, "max_answers"),
        ({"dta": {}}, "unknown entries"),
        ({"certified": {"required": 1}}, "required"),
    ],
)
def test_settings_that_close_the_site_are_a_problem(
    site: KitFolder, settings: dict[str, Any], words: str
) -> None:
    site.write("gradward.json", settings)
    result = site.doctor()
    assert result.exit_code == 1 and words in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    "policy",
    [
        {"scopes": [{"name": "a"}], "default_scope": "b"},
        {"scopes": [{"name": "a", "task_result_filters": [{"path": "gradward.flare.No"}]}]},
        {
            "scopes": [
                {
                    "name": "a",
                    "task_result_filters": [
                        {"path": "gradward.flare.guard.PerturbationGuard", "args": {"sites": "x"}}
                    ],
                }
            ]
        },
    ],
)
def test_a_policy_that_nvflare_cannot_build_is_a_problem(
    site: KitFolder, policy: dict[str, Any]
) -> None:
    site.write("privacy.json", policy)
    assert site.finding("privacy.json").level == PROBLEM


def test_ways_round_a_policy_are_told(site: KitFolder) -> None:
    site.take("guarded")
    assert not _has(site, "scope")
    site.write("gradward.json", {})
    assert '"scope": "guarded"' in site.finding("scope").remedy
    site.write("gradward.json", {"scope": "strict"})
    assert site.finding("scope").level == PROBLEM
    policy = json.loads((site.local / "privacy.json").read_text())
    policy["scopes"].append({"name": "lax"})
    site.write("privacy.json", policy)
    site.write("gradward.json", {"scope": "guarded"})
    assert "guarded, lax" in site.finding("scope").text
    site.write("privacy.json", {"scopes": [{"name": "lax"}]})
    assert "no default scope" in site.finding("privacy.json").text


def _has(kit: KitFolder, topic: str) -> bool:
    return any(finding.topic == topic for finding in examine(kit.folder))


def test_a_certificate_without_its_filters_is_a_problem(site: KitFolder) -> None:
    site.take("guarded")
    site.write("gradward.json", {"scope": "guarded", "certified": {"required": True}})
    assert site.finding("certificate", PROBLEM).level == PROBLEM
    assert site.finding("logs").level == PROBLEM, "and its logs may not be streamed"
    site.resources(allow_log_streaming=False)
    assert site.finding("logs").level == OK


def test_a_policy_changed_after_the_start_is_a_problem(site: KitFolder) -> None:
    site.allow_ours()
    site.take("guarded")
    assert "not running" in site.finding("running").text
    (site.folder / "pid.fl").write_text(str(os.getpid()))
    for file in site.local.iterdir():
        os.utime(file, (time.time() - 100, time.time() - 100))
    assert site.finding("running").level == OK
    os.utime(site.local / "privacy.json", (time.time() + 100, time.time() + 100))
    running = site.finding("running")
    assert running.level == PROBLEM and running.text.startswith("privacy.json changed")
    assert "gradward.json" not in running.text, "that is read at every task"
    (site.folder / "pid.fl").write_text("0x")
    assert "not running" in site.finding("running").text


def test_a_private_folder_that_others_can_read_is_a_problem(site: KitFolder) -> None:
    private = site.folder / "gradward"
    private.mkdir(mode=0o700)
    assert site.finding("private folder").level == OK
    private.chmod(0o750)
    assert "chmod 700" in site.finding("private folder").remedy


def test_who_may_bring_code_is_told(site: KitFolder) -> None:
    rights = json.loads((site.local / "authorization.json.default").read_text())
    assert "lead" in site.finding("code of jobs").text
    rights["permissions"]["lead"]["byoc"] = "none"
    rights["permissions"]["project_admin"] = "none"
    site.write("authorization.json", rights)
    assert not _has(site, "code of jobs")


def test_a_folder_that_is_no_kit_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", str(tmp_path)])
    assert result.exit_code == 1 and "not that of a site or a server" in result.output


def test_without_a_kit_it_looks_at_the_machine() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0 and f"NVFlare {TESTED_NVFLARE[:3]}" in result.output
    assert json.loads((ROOT / "meta.json").read_text())["custom_props"]["nvflare"] == TESTED_NVFLARE
