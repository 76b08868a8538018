"""The pages that need a federation, command by command as they stand there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradward.models import build_model
from gradward.report.records import LeakageRecord, read_records

from ..unit.docs_pages import commands, scripts
from .harness import ROOT


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder that looks like the repository to the commands of a page."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    return tmp_path


def follow(page: str, folder: Path) -> str:
    """Run a page from its first command to its last; its Python comes before the first run.

    Returns:
        What the commands printed.
    """
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = os.environ | {"PATH": os.pathsep.join(places), "COLUMNS": "100"}
    printed, adapted = "", False
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "cd":
            folder = folder / words[1]
            continue
        if words[:2] == ["gradward", "run"] and not adapted:
            exec_in(folder, scripts(page)[-1])
            adapted = True
        if words[0] == "gradward":
            words = [sys.executable, "-m", *words]
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, timeout=580
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        printed += done.stdout
    return printed


def exec_in(folder: Path, script: str) -> None:
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)


def best(records: list[LeakageRecord], site: str) -> float:
    """What was recovered most of one site in any round."""
    return max(
        record.recovered
        for record in records
        if record.site == site and not record.control and record.recovered is not None
    )


def test_the_tutorial(repository: Path) -> None:
    printed = follow("docs/tutorial.md", repository)
    assert "'public': 240" in printed and "public decoys  120 images" in printed
    runs = repository / "own" / "runs"
    open_run = list(read_records(runs / "ward" / "leakage.jsonl"))
    defended = list(read_records(runs / "ward_defended" / "leakage.jsonl"))
    assert best(open_run, "site-1") > 0.7
    assert best(defended, "site-1") < 0.1
    assert (runs / "ward" / "report" / "index.html").is_file()


def test_own_attack_and_filter(repository: Path) -> None:
    follow("docs/extending.md", repository)
    run = repository / "runs" / "my_job"
    records = list(read_records(run / "leakage.jsonl"))
    assert {record.attack for record in records} == {"SquaresByAdam"}
    by_site = {record.site: record for record in records if not record.control}
    assert by_site["site-1"].status == "ok", by_site["site-1"].reason
    # The example refuses more than four images.
    assert by_site["site-2"].status == by_site["site-3"].status == "skipped"
    (model,) = (run / "workspace" / "server").rglob("FL_global_model.pt")
    trained = torch.load(model, weights_only=False)["model"]
    before = build_model(
        "lenet", in_channels=3, num_classes=2, image_size=[32, 32], seed=7
    ).state_dict()
    moved = [torch.as_tensor(trained[name]) - before[name] for name in before]
    norm = float(torch.cat([change.flatten() for change in moved]).norm())
    assert 0 < norm <= 0.05 + 1e-6, "an update longer than the filter's bound was averaged"
