"""Rule 2: the core knows no federation."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "custom" / "gradward"


def imported_modules(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize(
    "file",
    [f for f in sorted(PACKAGE.rglob("*.py")) if "flare" not in f.relative_to(PACKAGE).parts],
    ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_only_flare_imports_nvflare(file: Path) -> None:
    modules = imported_modules(file)
    assert not {name for name in modules if name.split(".")[0] == "nvflare"}
    if file.name not in ("cli.py", "cli_deploy.py"):
        assert not {name for name in modules if name.startswith("gradward.flare")}


def test_core_works_without_nvflare() -> None:
    """A notebook user without NVFlare can import everything but ``flare``."""
    code = (
        "import sys; sys.modules['nvflare'] = None\n"
        "import gradward.audit, gradward.attacks.portfolio\n"
        "import gradward.data, gradward.metrics, gradward.models\n"
        "import gradward.report.page, gradward.training, gradward.cli\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bundle_and_jobs_agree() -> None:
    """The top-level meta.json lists every job, and each job agrees with it."""
    bundle = json.loads((ROOT / "meta.json").read_text())
    listed = bundle["custom_props"]["jobs"]
    assert sorted(listed) == sorted(path.name for path in (ROOT / "jobs").iterdir())
    assert bundle["custom_props"]["default_job"] in listed
    for name in listed:
        meta = json.loads((ROOT / "jobs" / name / "meta.json").read_text())
        assert meta["name"] == name
        assert meta["custom_props"]["version"] == bundle["custom_props"]["version"]
        assert meta["min_clients"] < len(meta["custom_props"]["sites"]), "one fault must not end it"


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").iterdir()), ids=lambda job: job.name)
def test_server_and_sites_share_one_experiment(job: Path) -> None:
    configs = [
        json.loads((job / "app" / "config" / f"config_fed_{side}.json").read_text())
        for side in ("server", "client")
    ]
    experiments = [
        next(item["args"] for item in config["components"] if item["id"] == "experiment")
        for config in configs
    ]
    assert experiments[0] == experiments[1]


def test_project_names_no_path_of_a_machine() -> None:
    for file in [*ROOT.glob("*.md"), *PACKAGE.rglob("*.py"), *(ROOT / "docs").rglob("*.md")]:
        text = file.read_text()
        assert "/work/" not in text and "/root/" not in text, file
