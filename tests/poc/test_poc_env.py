"""A recipe in NVFlare's PocEnv, which makes, starts and stops a federation by itself."""

from __future__ import annotations

import sys
from pathlib import Path

from gradward.report.records import read_records

from ..integration.harness import ROOT
from .federation import ADMIN, SITES, kill_all, processes_of, project_with_free_ports, run

# In a process of its own: NVFlare keeps the workspace's place in the environment and home folder.
SCRIPT = """
import sys
from nvflare.recipe import PocEnv
from tests.poc.federation import short_recipe

project, admin = sys.argv[1:]
env = PocEnv(
    num_clients=3, project_conf_path=project, username=admin, extra={"login_timeout": 60}
)
run = short_recipe().execute(env)
result = run.get_result(timeout=240, clean_up=False)
print("ended:", run.get_status(), result)
"""


def test_a_recipe_runs_in_a_poc_of_its_own(tmp_path: Path) -> None:
    project = project_with_free_ports(tmp_path)
    try:
        said = run(
            [sys.executable, "-c", SCRIPT, project, ADMIN],
            400,
            HOME=str(tmp_path),
            NVFLARE_POC_WORKSPACE=str(tmp_path / "workspace"),
            PYTHONPATH=f"{ROOT}:{ROOT / 'custom'}",
        )
    finally:
        kill_all(processes_of(tmp_path))
    assert "ended: FINISHED:COMPLETED" in said
    (file,) = (tmp_path / "workspace").rglob("workspace/leakage.jsonl")
    # It waits three seconds for its sites and then starts the job with those that are there.
    found = {record.site for record in read_records(file)}
    assert found <= set(SITES) and len(found) >= 2
