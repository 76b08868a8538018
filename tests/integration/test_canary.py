"""The canary audit in a running federation: it tells something, and disturbs nothing."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from gradward.flare.simulator import SimulatedRun
from gradward.report.records import LeakageRecord

from .harness import TINY_AUDIT, JobVariant, records_of, simulate, tensorboard_scalars

PERTURBED, RAW, PRUNED, UNPERTURBED = SITES = ("site-1", "site-2", "site-3", "site-4")
GUARDED = [PERTURBED, UNPERTURBED]
TASKS = ["train", "validate", "submit_model", "score_reconstruction", "canary_update"]
ROUNDS = 2
# No site answers a question about its own images, and all are audited.
CLOSED = {"scoring": {"enabled": False}}
# Fitted in seconds: what it hides is not the matter here.
QUICK = {"mode": "class", "fitted_on": "public", "autoencoder_steps": 3}


@dataclass
class Compared:
    """The same federation with a canary audit and without any."""

    audited: SimulatedRun
    plain: SimulatedRun
    base: Path

    def results(self, which: str, task: str, site: str) -> list[dict[str, Any]]:
        """What arrived at the server, in order."""
        lines = (self.base / f"{which}.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        return [entry for entry in entries if (entry["task"], entry["site"]) == (task, site)]

    def private(self, site: str) -> Path:
        """A site's private job folder in the audited run."""
        return self.base / "audited-private" / site / "jobs" / "simulate_job"


def build(base: Path, which: str) -> JobVariant:
    (base / which).mkdir()
    job = JobVariant.of("quickstart_defended", base / which)
    job.workflow(num_rounds=ROUNDS, min_clients=1)
    job.component(job.client, "perturbation")["per_site"] = {PERTURBED: QUICK}
    chain = job.client["task_result_filters"][0]
    chain["filters"][0]["args"]["sites"] = GUARDED
    updates = [
        {"path": "gradward.flare.update_filters.UpdatePruning", "args": {"method": "dual"}},
        {"path": "gradward.flare.update_filters.UpdateNoise", "args": {"fraction": 0.1}},
    ]
    for update_filter in updates:
        arguments = {
            "sites": [PRUNED],
            "path": update_filter["path"],
            "arguments": update_filter["args"],
        }
        chain["filters"].append({"path": "canary_probes.FilterAt", "args": arguments})
    job.add("client", "canary_probes.FixedSecrets")
    log = {"path": "canary_probes.ResultLog", "args": {"file": str(base / f"{which}.jsonl")}}
    job.server["task_result_filters"].append({"tasks": TASKS, "filters": [log]})
    return job


def with_canaries(job: JobVariant) -> None:
    """Make the documented changes: the audit's subject, and the task wherever ``train`` is."""
    job.audit(**TINY_AUDIT, subject="canary")
    for entry in (*job.client["executors"], *job.client["task_result_filters"]):
        if "train" in entry["tasks"]:
            entry["tasks"].append("canary_update")


def without_audit(job: JobVariant) -> None:
    """NVFlare's own workflow, and none of our components that audit."""
    arguments = job.server["workflows"][0]["args"]
    path = "nvflare.app_common.workflows.scatter_and_gather.ScatterAndGather"
    job.server["workflows"] = [
        {
            "id": "train",
            "path": path,
            "args": arguments
            | {
                "aggregator_id": "aggregator",
                "persistor_id": "persistor",
                "shareable_generator_id": "shareable_generator",
            },
        }
    ]
    for side in (job.server, job.client):
        side["components"] = [c for c in side["components"] if c["id"] != "auditor"]
    del job.client["executors"][1]


def run(job: JobVariant, base: Path, which: str) -> SimulatedRun:
    """Simulate with secrets that both runs share."""
    private = base / f"{which}-private"
    for number, site in enumerate(SITES):
        (private / site).mkdir(parents=True)
        secret = private / site / "secret"
        secret.write_bytes(bytes([number]) * 32)
        secret.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "GRADWARD_PRIVATE", str(private))
        return simulate(job, base / f"{which}-run", SITES, CLOSED)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Four sites, each with another defence; one of them guarded without having any."""
    base = tmp_path_factory.mktemp("canary")
    audited, plain = build(base, "audited"), build(base, "plain")
    with_canaries(audited)
    without_audit(plain)
    return Compared(run(audited, base, "audited"), run(plain, base, "plain"), base)


def of(compared: Compared, site: str) -> list[LeakageRecord]:
    records = [record for record in records_of(compared.audited) if record.site == site]
    return [record for record in records if not record.control]


def model_bytes(finished: SimulatedRun) -> dict[str, bytes]:
    state = torch.load(next(finished.folder.rglob("FL_global_model.pt")), weights_only=True)
    return {
        name: torch.as_tensor(value).numpy().tobytes() for name, value in state["model"].items()
    }


def test_both_runs_end_well(compared: Compared) -> None:
    assert compared.audited.exit_code == 0 and compared.plain.exit_code == 0


@pytest.mark.parametrize("site", [PERTURBED, RAW, PRUNED])
def test_each_update_is_the_same_to_the_bit(compared: Compared, site: str) -> None:
    audited, plain = (compared.results(which, "train", site) for which in ("audited", "plain"))
    assert len(audited) == ROUNDS and {entry["code"] for entry in audited} == {"OK"}
    assert audited == plain
    assert len({entry["digest"] for entry in audited}) == ROUNDS, "rounds differ"


def test_the_global_model_is_the_same_to_the_bit(compared: Compared) -> None:
    assert model_bytes(compared.audited) == model_bytes(compared.plain)


def test_canaries_are_scored_on_the_server_and_say_so(compared: Compared) -> None:
    records = records_of(compared.audited)
    assert {record.subject for record in records} == {"canary"}
    for site, canaries in ((PERTURBED, 1), (RAW, 9), (PRUNED, 9)):
        assert [record.round for record in of(compared, site)] == list(range(ROUNDS))
        for record in of(compared, site):
            assert record.status == "ok" and record.canaries == canaries
            assert (record.gallery or 0) >= 100 and record.prior["ssim"] is not None
    controls = Counter(record.site for record in records if record.control)
    assert controls == {PERTURBED: ROUNDS, RAW: ROUNDS, PRUNED: ROUNDS}


def test_no_site_is_asked_about_its_own_images(compared: Compared) -> None:
    lines = (compared.base / "audited.jsonl").read_text().splitlines()
    tasks = {json.loads(line)["task"] for line in lines}
    assert tasks == {"train", "canary_update"}
    for site in SITES:
        kept = {path.name for path in compared.private(site).rglob("*")}
        assert kept and not kept & {"answers.log", "answers.json", "pictures"}


def test_an_undefended_canary_is_blocked_where_the_update_is(compared: Compared) -> None:
    for task in ("train", "canary_update"):
        codes = [entry["code"] for entry in compared.results("audited", task, UNPERTURBED)]
        assert codes == ["TASK_RESULT_FILTER_ERROR"] * ROUNDS
    records = of(compared, UNPERTURBED)
    assert [record.status for record in records] == ["absent"] * ROUNDS
    assert "TASK_RESULT_FILTER_ERROR" in records[0].reason
    journal = (compared.private(UNPERTURBED) / "guard.log").read_text().splitlines()
    assert Counter(json.loads(line)["task"] for line in journal) == {
        "train": ROUNDS,
        "canary_update": ROUNDS,
    }


def test_the_perturbed_canary_passed_the_guard_by_a_twin(compared: Compared) -> None:
    journal = (compared.private(PERTURBED) / "guard.log").read_text().splitlines()
    entries = [json.loads(line) for line in journal]
    canaries = [entry for entry in entries if entry["task"] == "canary_update"]
    assert [entry["verdict"] for entry in canaries] == ["passed"] * ROUNDS
    private = compared.private(PERTURBED).parents[1]
    assert list((private / "perturbers").glob("*/perturber.pt"))
    assert list((private / "canary" / "perturbers").glob("*/perturber.pt"))
    assert (private / "canary" / "secret").read_bytes() != (private / "secret").read_bytes()


def test_table_page_and_tensorboard_show_canaries(compared: Compared) -> None:
    page = (compared.audited.folder / "report" / "index.html").read_text()
    assert "Public canary images were attacked" in page
    scalars = tensorboard_scalars(next((compared.audited.folder / "tb_events").glob("*server*")))
    shown = dict(scalars[f"canary/{RAW}/batchnorm/recovered"])
    assert shown == pytest.approx({r.round: r.recovered for r in of(compared, RAW)})
    for site in SITES:
        folder = compared.audited.folder / "tb_events" / site
        tags = tensorboard_scalars(folder) if folder.is_dir() else {}
        assert not [tag for tag in tags if "canary" in tag or "leakage" in tag]
