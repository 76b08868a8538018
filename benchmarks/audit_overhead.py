"""What the audit costs the federation: capture time, and the rounds' wall time.

Three variants of one federation run in turn, several times: without audit; with an audit whose
attack sleeps and whose results are not scored; the same with scoring. Results are written after
each run, and a repeated call goes on where the last one stopped.

    python benchmarks/audit_overhead.py [--repeats 3] [--model resnet18] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib

from gradward.flare.simulator import run_in_simulator

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
SITES = ["site-2", "site-3"]
ROUNDS = 4
VARIANTS = ("no audit", "audit", "audit and scoring")


def build_job(folder: Path, variant: str, model: str, sleep: float) -> Path:
    """Make a job from ``jobs/quickstart``: longer rounds, two sites, a sleeping attack."""
    job = folder / "job"
    shutil.copytree(HERE.parent / "jobs" / "quickstart", job)
    for side in ("server", "client"):
        file = job / "app" / "config" / f"config_fed_{side}.json"
        config = json.loads(file.read_text())
        components = {item["id"]: item for item in config["components"]}
        components["experiment"]["args"].update(
            model=model, training={"batch_size": 8, "lr": 0.001, "steps": 60}, per_site={}
        )
        if side == "server":
            config["workflows"][0]["args"].update(num_rounds=ROUNDS, min_clients=1)
            auditor = components["auditor"]
            auditor["path"] = "sleeping_attack.SleepingAuditor"
            auditor["args"].update(
                attacks=[{"name": "batchnorm"}],
                budget={"evaluations": 2 if variant == VARIANTS[2] else 1, "seconds": sleep},
                sites=["nobody"] if variant == "no audit" else None,
            )
        file.write_text(json.dumps(config))
    return job


def round_seconds(log: str) -> list[float]:
    """Wall time of each round, from the server's log."""
    pattern = r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}).*Round (\d+) (started|finished)\."
    moments: dict[tuple[str, str], datetime] = {}
    for stamp, number, what in re.findall(pattern, log, flags=re.MULTILINE):
        moments[number, what] = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f")
    return [
        (moments[str(n), "finished"] - moments[str(n), "started"]).total_seconds()
        for n in range(ROUNDS)
    ]


def captures(folder: Path) -> list[float]:
    """Milliseconds each capture held the server's workflow, from TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: list[float] = []
    for events in {file.parent for file in folder.rglob("events.out.tfevents.*")}:
        accumulator = EventAccumulator(str(events))
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            if tag.endswith("/capture_ms"):
                found += [event.value for event in accumulator.Scalars(tag)]
    return found


def run_variant(variant: str, model: str, sleep: float) -> dict[str, Any]:
    """Run one federation and return its figures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = run_in_simulator(
            build_job(folder, variant, model, sleep),
            folder / "run",
            sites=SITES,
        )
        if run.exit_code:
            raise RuntimeError(f"the simulator ended with code {run.exit_code}")
        log = (run.folder / "simulator.log").read_text(errors="replace")
        return {
            "variant": variant,
            # The first one includes the start of the sites' processes.
            "rounds": round_seconds(log),
            "captures_ms": captures(run.folder / "tb_events"),
        }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Wall time of all rounds, and its ratio to the same repeat without audit."""
    per_variant = {
        variant: [round(sum(run["rounds"]), 3) for run in runs if run["variant"] == variant]
        for variant in VARIANTS
    }
    base = per_variant[VARIANTS[0]]
    ratios = {
        variant: [value / reference for value, reference in zip(values, base, strict=False)]
        for variant, values in per_variant.items()
    }
    captured = [value for run in runs for value in run["captures_ms"]]
    return {
        "seconds_of_rounds": per_variant,
        "ratio_to_no_audit": ratios,
        "median_ratio": {k: statistics.median(v) for k, v in ratios.items() if v},
        "capture_ms": {
            "median": statistics.median(captured),
            "max": max(captured),
            "n": len(captured),
        },
    }


def plot(runs: list[dict[str, Any]], file: Path) -> None:
    """Show every round of every run."""
    figure, axes = plt.subplots(figsize=(6, 3.5))
    axes.boxplot(
        [[s for r in runs if r["variant"] == v for s in r["rounds"]] for v in VARIANTS],
        tick_labels=list(VARIANTS),
    )
    axes.set_ylabel("seconds a round")
    axes.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Run what is missing and write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--sleep", type=float, default=8.0, help="seconds an attack takes")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(HERE)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"audit_overhead_{options.model}.json"
    runs: list[dict[str, Any]] = json.loads(file.read_text())["runs"] if file.is_file() else []
    for number in range(len(runs), options.repeats * len(VARIANTS)):
        runs.append(run_variant(VARIANTS[number % 3], options.model, options.sleep))
        print(runs[-1]["variant"], [round(value, 1) for value in runs[-1]["rounds"]], flush=True)
        settings = {"sites": SITES, "rounds": ROUNDS, "sleep": options.sleep}
        complete = len(runs) >= len(VARIANTS)
        file.write_text(
            json.dumps(
                {
                    "settings": settings,
                    "runs": runs,
                    "summary": summarise(runs) if complete else None,
                },
                indent=2,
            )
        )
    plot(runs, file.with_suffix(".png"))
    print(json.dumps(summarise(runs), indent=2))


if __name__ == "__main__":
    main()
