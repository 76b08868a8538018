"""Tables as JSON and Markdown, verdicts on the targets, a plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from .cases import CASES
from .contenders import CONTENDERS
from .plots import plot
from .store import Store
from .summary import Row, rows_of
from .targets import Verdict, verdicts

_OURS = ("torch", "monai", "numpy", "scipy")


def write_versions(out: Path, peers: Mapping[str, str]) -> None:
    """Write on what the latest run was made, for the report."""
    facts = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _OURS},
        "peers": dict(peers),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "versions.json").write_text(json.dumps(facts, indent=1) + "\n")


def write_report(out: Path) -> list[Path]:
    """Write results.json, report.md and plot.png of what is there; return the files."""
    rows = rows_of(Store(out / "records").records)
    costs, labels = _read(out / "cost.json"), _read(out / "labels.json").get("accuracy", {})
    judged = verdicts(rows, costs, labels)
    results = {
        "versions": _read(out / "versions.json"),
        "targets": [asdict(verdict) for verdict in judged],
        "rows": [asdict(row) for row in rows],
        "cost": costs,
        "labels": labels,
    }
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "results.json", out / "report.md"]
    files[0].write_text(json.dumps(results, indent=1) + "\n")
    parts = [
        _heading(results["versions"]),
        _targets(judged),
        *(_case(name, list(own)) for name, own in groupby(rows, lambda row: row.case)),
        _costs(costs),
        _labels(labels),
    ]
    files[1].write_text("\n\n".join(part for part in parts if part) + "\n")
    if plot(rows, out / "plot.png"):
        files.append(out / "plot.png")
    return files


def _heading(facts: Mapping[str, Any]) -> str:
    text = (
        "# Attacks\n\n"
        "Every contender of a case gets the same update, the same facts and one thread; peers get "
        "at least GradWard's CPU seconds. Quality is that of the iterate with the lowest loss, "
        "never of the one closest to the truth: median over victims and seeds (lowest to highest). "
        "PSNR in dB, SSIM as MONAI calculates it, recovered = (s - p) / (1 - p) with p the SSIM "
        "of the public mean image. Peers count iterations, of which one of L-BFGS holds up to 25 "
        "evaluations."
    )
    if not facts:
        return text
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    peers = ", ".join(facts["peers"].values()) or "none installed: GradWard ran alone"
    return (
        f"{text}\n\nHardware: {facts['processor']}, {facts['cores']} cores. Python "
        f"{facts['python']}, {packages}. Peers: {peers}."
    )


def _targets(judged: Sequence[Verdict]) -> str:
    words = {True: "met", False: "**not met**", None: "–"}
    lines = ["## Targets", "", "| target | reached | |", "|---|---|---|"]
    lines += [f"| {v.target} | {v.reached} | {words[v.met]} |" for v in judged]
    return "\n".join(lines)


def _case(name: str, rows: Sequence[Row]) -> str:
    case = CASES[name]
    options = {c.name: c.options for c in CONTENDERS[name] if c.options}
    priors = [value for row in rows for value in row.values.get("prior_ssim", ())]
    guess = f" SSIM of the public mean: {statistics.median(priors):.3f}." if priors else ""
    lines = [
        f"## {name}: {case.title}",
        "",
        f"Given: {case.given}.{guess}",
        "",
        "| contender | budget, CPU s | CPU s | evaluations | runs | PSNR | SSIM | recovered |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = " | ".join(row.spread(measure) for measure in ("psnr", "ssim", "recovered"))
        lines.append(
            f"| {row.contender} | {row.budget:g} | {row.cpu_seconds:.1f} | {row.evaluations:.0f} "
            f"| {row.count} | {figures} |"
        )
    for row in rows:
        lines += [f"\n{row.contender}, {row.budget:g} s: {reason}." for reason in row.troubles]
        if row.values.get("labels"):
            right = row.median("labels")
            lines.append(f"\n{row.contender}, {row.budget:g} s: {right:.0%} of the labels right.")
    lines += [f"\nOptions of {name}: `{json.dumps(values)}`." for name, values in options.items()]
    return "\n".join(lines)


def _costs(costs: Mapping[str, Any]) -> str:
    if not costs:
        return ""
    lines = [
        "## Cost of an evaluation over its floor",
        "",
        "Floor: forward, backward and double backward alone; for batchnorm forward and input "
        "gradient. Repetitions in turns.",
        "",
        "| loop | loop, ms | floor, ms | median ratio (range) |",
        "|---|---|---|---|",
    ]
    for name, row in costs.items():
        lines.append(
            f"| {name} | {row['loop_ms']:.1f} | {row['floor_ms']:.1f} | {row['ratio']:.2f} "
            f"({row['lowest']:.2f} to {row['highest']:.2f}) |"
        )
    return "\n".join(lines)


def _labels(labels: Mapping[str, Mapping[str, float]]) -> str:
    if not labels:
        return ""
    lines = [
        "## Labels of eight images in one step, inferred",
        "",
        "| model | updates | mean share of right labels | all right |",
        "|---|---|---|---|",
    ]
    for name, found in labels.items():
        values = list(found.values())
        whole = sum(value == 1 for value in values)
        mean = sum(values) / len(values)
        lines.append(f"| {name} | {len(values)} | {mean:.3f} | {whole}/{len(values)} |")
    return "\n".join(lines)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found
