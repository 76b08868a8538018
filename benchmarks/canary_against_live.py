"""Does a canary audit find what a live audit finds?

The same job runs twice with the same seed, attacked live and by canaries. Neither audit disturbs
the training, so that both see the same global models: each site and round gives a pair. What was
run is kept; a repeated call goes on where the last one stopped.

    python benchmarks/canary_against_live.py jobs/quickstart --rounds 2 --evaluations 100
    python benchmarks/canary_against_live.py jobs/pneumonia_sites --defence perturbation --rounds 10
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from scipy.stats import kendalltau

from gradward.flare.canary import CANARY_TASK
from gradward.flare.simulator import LOG_FILE, run_in_simulator, sites_of
from gradward.report.records import CANARY, FILE_NAME, LIVE, LeakageRecord, read_records

RESULTS = Path(__file__).parent / "results" / "canary"
TRAIN = "train"
# The sites answer these tasks: whatever filters results must know each of them.
RESULT_TASKS = [TRAIN, "validate", "submit_model", "score_reconstruction"]
PERTURBATION = {
    "id": "perturbation",
    "path": "gradward.flare.perturber.Perturbation",
    "args": {"settings": {"mode": "class"}},
}
DEFENCES: dict[str, dict[str, Any] | None] = {
    "as the job": None,
    "perturbation": {"path": "gradward.flare.guard.PerturbationGuard", "args": {}},
    "update-noise": {
        "path": "gradward.flare.update_filters.UpdateNoise",
        "args": {"fraction": 0.1},
    },
    "dual-pruning": {
        "path": "gradward.flare.update_filters.UpdatePruning",
        "args": {"method": "dual"},
    },
}

# On a busy machine the audits of the last rounds outlast the half hour that a job gives them.
DRAIN_TIMEOUT = 3 * 3600

Pair = tuple[str, int, int]
"""Site, round, seed."""


@dataclass(frozen=True)
class Variant:
    """How the audited job differs from the one it is made of."""

    defence: str
    rounds: int
    evaluations: int | None
    attack: str | None

    @property
    def name(self) -> str:
        """Part of the result's file name."""
        words = [self.defence.replace(" ", "-"), f"{self.rounds}r"]
        words += [] if self.evaluations is None else [f"{self.evaluations}e"]
        return "-".join(words + ([] if self.attack is None else [self.attack]))


def write_job(source: Path, target: Path, subject: str, variant: Variant) -> None:
    """Copy a job with another subject of its audit, and perhaps another defence."""
    shutil.copytree(source, target)
    for file in target.glob("*/config/config_fed_server.json"):
        config = json.loads(file.read_text())
        config["workflows"][0]["args"]["num_rounds"] = variant.rounds
        for workflow in config["workflows"]:
            if workflow["path"].endswith(".AuditDrain"):
                workflow["args"]["timeout"] = DRAIN_TIMEOUT
        (auditor,) = (item["args"] for item in config["components"] if item["id"] == "auditor")
        if variant.evaluations is not None:
            auditor["budget"]["evaluations"] = variant.evaluations
        if variant.attack is not None:
            auditor["attacks"] = [a for a in auditor["attacks"] if a["name"] == variant.attack]
        auditor.update(subject=subject, every_n_rounds=1)
        file.write_text(json.dumps(config))
    for file in target.glob("*/config/config_fed_client.json"):
        config = json.loads(file.read_text())
        if (defending := DEFENCES[variant.defence]) is not None:
            _defend(config, defending)
        if subject == CANARY:
            for entry in (*config["executors"], *config["task_result_filters"]):
                if TRAIN in entry["tasks"]:
                    entry["tasks"].append(CANARY_TASK)
        file.write_text(json.dumps(config))


def _defend(config: dict[str, Any], defending: dict[str, Any]) -> None:
    config["task_result_filters"].append({"tasks": [*RESULT_TASKS], "filters": [defending]})
    if defending is not DEFENCES["perturbation"]:
        return
    config["components"].append(PERTURBATION)
    for entry in config["executors"]:
        if TRAIN in entry["tasks"]:
            entry["executor"]["args"]["perturbation_id"] = "perturbation"


def run(
    source: Path,
    records: Path,
    subject: str,
    variant: Variant,
    seed: int,
    site_settings: Path | None,
) -> None:
    """Run one federation and keep its records."""
    with tempfile.TemporaryDirectory() as scratch:
        job, folder = Path(scratch) / source.name, Path(scratch) / "run"
        write_job(source, job, subject, variant)
        finished = run_in_simulator(
            job, folder, sites=sites_of(job, None), seed=seed, site_settings=site_settings
        )
        if finished.exit_code or not (folder / FILE_NAME).is_file():
            log = (folder / LOG_FILE).read_text(errors="replace")[-2000:]
            raise click.ClickException(f"the {subject} run failed:\n{log}")
        partial = records.with_suffix(".partial")
        shutil.copy(folder / FILE_NAME, partial)
        partial.replace(records)


def recovered(records: Sequence[LeakageRecord]) -> dict[Pair, float]:
    """Return the best of attacks for each site, round and seed that was scored."""
    found: dict[Pair, list[float]] = defaultdict(list)
    for record in records:
        if not record.control and record.recovered is not None:
            found[record.site, record.round, record.seed].append(record.recovered)
    return {pair: max(values) for pair, values in found.items()}


def compare(live: Mapping[Pair, float], canary: Mapping[Pair, float]) -> dict[str, Any]:
    """Return paired differences, canary - live, and whether both rank the sites alike.

    Raises:
        ValueError: no site and round was scored in both.
    """
    pairs = sorted(set(live) & set(canary))
    if not pairs:
        raise ValueError("no site was scored in both runs; look at the statuses of the records")
    sites: dict[str, dict[str, Any]] = {}
    for site in sorted({site for site, _, _ in pairs}):
        own = [pair for pair in pairs if pair[0] == site]
        differences = [canary[pair] - live[pair] for pair in own]
        sites[site] = {
            "pairs": len(own),
            "live": statistics.mean(live[pair] for pair in own),
            "canary": statistics.mean(canary[pair] for pair in own),
            "difference": statistics.mean(differences),
            "standard_error": (
                statistics.stdev(differences) / len(own) ** 0.5 if len(own) > 1 else None
            ),
        }
    means = [[values[subject] for values in sites.values()] for subject in (LIVE, CANARY)]
    return {
        "pairs": len(pairs),
        "mean_difference": statistics.mean(canary[pair] - live[pair] for pair in pairs),
        "largest_difference_of_a_site": max(abs(v["difference"]) for v in sites.values()),
        "rank_agreement": _tau(*means),
        # Below 0 nothing was recovered, and the order of such sites means nothing.
        "rank_agreement_of_what_leaked": _tau(*([max(v, 0.0) for v in side] for side in means)),
        "sites": sites,
        "by_round": {
            f"{site} round {number} seed {seed}": [
                live[site, number, seed],
                canary[site, number, seed],
            ]
            for site, number, seed in pairs
        },
    }


def _tau(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Kendall's tau-b, 1 for the same order; None where all are tied or there is one site."""
    tau = float(kendalltau(one, other).statistic) if len(one) > 1 else math.nan
    return None if math.isnan(tau) else tau


def plot(live: Mapping[Pair, float], canary: Mapping[Pair, float], title: str, file: Path) -> None:
    """Show every pair, a colour a site; on the diagonal both audits say the same."""
    figure, axes = plt.subplots(figsize=(4.5, 4.5))
    pairs = sorted(set(live) & set(canary))
    for site in sorted({site for site, _, _ in pairs}):
        own = [pair for pair in pairs if pair[0] == site]
        axes.scatter([live[p] for p in own], [canary[p] for p in own], s=18, label=site)
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.8)
    axes.set(xlabel="recovered, live", ylabel="recovered, canary", title=title)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


@click.command(help=__doc__)
@click.argument("job", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--defence", type=click.Choice(list(DEFENCES)), default="as the job")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="from 0 on")
@click.option("--evaluations", type=click.IntRange(1), help="of each attack; the job's by default")
@click.option("--attack", help="the only one of the job's attacks to mount; all by default")
@click.option("--site-settings", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
def main(
    job: Path,
    defence: str,
    rounds: int,
    seeds: int,
    evaluations: int | None,
    attack: str | None,
    site_settings: Path | None,
    out: Path,
) -> None:
    """Run what is missing; write figures and plot."""
    variant = Variant(defence, rounds, evaluations, attack)
    name = f"{job.resolve().name}-{variant.name}"
    (out / "records").mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[Pair, float]] = {LIVE: {}, CANARY: {}}
    statuses: dict[str, dict[str, int]] = {LIVE: defaultdict(int), CANARY: defaultdict(int)}
    for seed in range(seeds):
        for subject, values in found.items():
            file = out / "records" / f"{name}-{subject}-{seed}.jsonl"
            if not file.is_file():
                click.echo(f"{name}: {subject}, seed {seed}")
                run(job, file, subject, variant, seed, site_settings)
            records = list(read_records(file))
            values |= recovered(records)
            for record in records:
                statuses[subject][record.status] += 1
    result = {
        "job": job.resolve().name,
        "defence": defence,
        "rounds": rounds,
        "seeds": seeds,
        "evaluations": evaluations or "the job's",
        "attack": attack or "the job's",
        "statuses": statuses,
        **compare(found[LIVE], found[CANARY]),
    }
    (out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(found[LIVE], found[CANARY], name, out / f"{name}.png")
    del result["by_round"]
    click.echo(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
