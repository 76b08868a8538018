"""The same seed gives the same leakage figures and the same model to the bit."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from gradward.flare.simulator import SimulatedRun
from gradward.report.records import LeakageRecord

from .harness import TINY_AUDIT, JobVariant, records_of, simulate

SITES = ("site-1", "site-2", "site-3")
ATTACKS = [{"name": name, "max_images": 64} for name in ("batchnorm", "matching")]


def run_once(base: Path, seed: int, threads: int) -> SimulatedRun:
    base.mkdir()
    job = JobVariant.of("quickstart", base)
    job.audit(**TINY_AUDIT | {"attacks": ATTACKS})
    job.workflow(num_rounds=2)
    run = simulate(job, base / "run", SITES, seed=seed, threads=threads)
    assert run.exit_code == 0
    return run


def figures(run: SimulatedRun) -> list[LeakageRecord]:
    """All records but what a clock says, in one order."""
    records = [replace(record, seconds=None) for record in records_of(run)]
    return sorted(records, key=lambda record: record.key)


def differences(
    one: list[LeakageRecord], other: list[LeakageRecord]
) -> dict[tuple[object, ...], dict[str, tuple[object, object]]]:
    """Return which values of which records differ."""
    assert [record.key for record in one] == [record.key for record in other]
    found = {}
    for a, b in zip(map(asdict, one), map(asdict, other), strict=True):
        if a != b:
            what = (a["site"], a["round"], a["attack"], a["control"])
            found[what] = {name: (a[name], b[name]) for name in a if a[name] != b[name]}
    return found


def model_bytes(run: SimulatedRun) -> dict[str, bytes]:
    file = next(run.folder.rglob("FL_global_model.pt"))
    state = torch.load(file, weights_only=True)["model"]
    return {name: torch.as_tensor(value).numpy().tobytes() for name, value in state.items()}


def test_same_seed_same_figures_and_same_model(tmp_path: Path) -> None:
    """Also with fewer threads than sites, where clients are made anew between tasks."""
    first = run_once(tmp_path / "a", seed=3, threads=3)
    second = run_once(tmp_path / "b", seed=3, threads=2)
    other = run_once(tmp_path / "c", seed=4, threads=3)
    assert not differences(figures(first), figures(second))
    assert model_bytes(first) == model_bytes(second)
    assert model_bytes(first) != model_bytes(other)
