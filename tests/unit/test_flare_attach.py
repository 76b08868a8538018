"""What `gradward attach` writes, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from nvflare.fuel.utils.class_utils import instantiate_class

from gradward.cli import main
from gradward.flare.attach import attach_audit
from gradward.flare.attach_parts import AttachError, AuditParts

EXPERIMENT: dict[str, Any] = {
    "model": "bn_cnn",
    "dataset": "histology",
    "image_size": [32, 32],
    "channels": 3,
    "num_classes": 2,
    "training": {"lr": 0.01, "batch_size": 4},
}
AUDITOR: dict[str, Any] = {"attacks": [{"name": "batchnorm"}], "budget": {"evaluations": 5}}
SERVER: dict[str, Any] = {
    "format_version": 2,
    "workflows": [{"id": "avg", "path": "nvflare.app_common.workflows.fedavg.FedAvg", "args": {}}],
    "components": [{"id": "experiment", "path": "theirs.Experiment"}],
}
CLIENT: dict[str, Any] = {
    "format_version": 2,
    "executors": [{"tasks": ["*"], "executor": {"path": "theirs.Trainer", "args": {"epochs": 3}}}],
}


def write_job(folder: Path, server: Any = SERVER, client: Any = CLIENT, **meta: Any) -> Path:
    config = folder / "app" / "config"
    config.mkdir(parents=True)
    (folder / "app" / "custom").mkdir()
    (folder / "app" / "custom" / "theirs.py").write_text("print('unchanged')")
    (config / "config_fed_server.json").write_text(json.dumps(server))
    (config / "config_fed_client.json").write_text(json.dumps(client))
    values = {"name": "theirs", "deploy_map": {"app": ["@ALL"]}, "custom_props": {"a": 1}} | meta
    (folder / "meta.json").write_text(json.dumps(values))
    return folder


def attached(job: Path, **changes: Any) -> dict[str, Any]:
    out = job.parent / "audited"
    values: dict[str, Any] = {"experiment": EXPERIMENT, "auditor": AUDITOR}
    attach_audit(job, out, AuditParts(**(values | changes)))
    config = out / "app" / "config"
    return {
        side: json.loads((config / f"config_fed_{side}.json").read_text())
        for side in ("server", "client")
    }


def classes(parts: list[dict[str, Any]]) -> list[str]:
    return [part["path"].rpartition(".")[2] for part in parts]


def test_their_parts_stay_and_ours_come_after(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    audited = attached(job)
    server, client = audited["server"], audited["client"]
    assert server["workflows"][0] == SERVER["workflows"][0]
    assert classes(server["workflows"]) == ["FedAvg", "AuditDrain"]
    assert server["components"][0] == SERVER["components"][0]
    assert classes(server["components"][1:]) == [
        "Experiment",
        "InversionAuditor",
        "RunLog",
        "LiveTBAnalyticsReceiver",
    ]
    assert client["executors"][0] == CLIENT["executors"][0]
    assert client["executors"][1]["tasks"] == ["score_reconstruction"]
    assert classes(client["components"]) == [
        "Experiment",
        "TrainingWitness",
        "AnalyticsSender",
        "ConvertToFedEvent",
    ]
    ids = [part["id"] for part in server["components"] + server["workflows"]]
    assert len(set(ids)) == len(ids), "theirs is called 'experiment' too"
    theirs = tmp_path / "audited" / "app" / "custom" / "theirs.py"
    assert theirs.read_text() == "print('unchanged')"
    meta = json.loads((tmp_path / "audited" / "meta.json").read_text())
    assert meta["name"] == "theirs_audited" and meta["custom_props"]["a"] == 1


def test_every_part_can_be_built_from_what_is_written(tmp_path: Path) -> None:
    audited = attached(write_job(tmp_path / "job"))
    parts = audited["server"]["components"][1:] + audited["server"]["workflows"][1:]
    parts += audited["client"]["components"] + [audited["client"]["executors"][1]["executor"]]
    for part in parts:
        instantiate_class(part["path"], part["args"])
    scorer = parts[-1]["args"]
    assert {scorer["experiment_id"], scorer["analytics_sender_id"]} <= {
        part["id"] for part in audited["client"]["components"]
    }


@pytest.mark.parametrize(
    ("workflow", "task"),
    [
        (
            {"path": "nvflare.app_common.workflows.fedavg.FedAvg", "args": {"task_name": "fit"}},
            "fit",
        ),
        ({"name": "ScatterAndGather", "args": {"train_task_name": "fit"}}, "fit"),
        ({"name": "ScatterAndGather"}, "train"),
    ],
)
def test_the_training_task_is_the_workflows(
    workflow: dict[str, Any], task: str, tmp_path: Path
) -> None:
    job = write_job(tmp_path / "job", SERVER | {"workflows": [{"id": "w", **workflow}]})
    client = attached(job)["client"]
    witness = next(part for part in client["components"] if part["id"] == "gradward_witness")
    assert witness["args"] == {"train_task": task}


def test_a_workflow_that_is_not_known_is_told(tmp_path: Path) -> None:
    swarm = [{"id": "w", "path": "nvflare.app_common.ccwf.SwarmServerController"}]
    job = write_job(tmp_path / "job", SERVER | {"workflows": swarm})
    result = attach_audit(job, tmp_path / "out", AuditParts(EXPERIMENT, AUDITOR))
    assert "AFTER_CONTRIBUTION_ACCEPT" in result.notes[0]


def test_nothing_is_streamed_twice(tmp_path: Path) -> None:
    receiver = {"id": "tb", "path": "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver"}
    converter = {
        "id": "event_to_fed",
        "name": "ConvertToFedEvent",
        "args": {"events_to_convert": ["analytix_log_stats"]},
    }
    audited = attached(
        write_job(
            tmp_path / "job",
            SERVER | {"components": [receiver]},
            CLIENT | {"components": [converter]},
        )
    )
    text = json.dumps(audited)
    assert text.count("TBAnalyticsReceiver") == text.count("ConvertToFedEvent") == 1


def test_hocon_is_read_and_written_as_json(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    config = job / "app" / "config"
    (config / "config_fed_client.json").unlink()
    (config / "config_fed_client.conf").write_text(
        "format_version = 2\n"
        'executors = [ { tasks = ["train"], executor { path = theirs.Trainer, args {} } } ]\n'
    )
    client = attached(job)["client"]
    assert [entry["tasks"] for entry in client["executors"]] == [
        ["train"],
        ["score_reconstruction"],
    ]
    assert not list((tmp_path / "audited").rglob("*.conf"))


def test_apps_per_site_are_all_audited(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", deploy_map={"app": ["server"], "app_site-1": ["site-1"]})
    (job / "app_site-1" / "config").mkdir(parents=True)
    (job / "app" / "config" / "config_fed_client.json").rename(
        job / "app_site-1" / "config" / "config_fed_client.json"
    )
    attach_audit(job, tmp_path / "out", AuditParts(EXPERIMENT, AUDITOR))
    client = (tmp_path / "out" / "app_site-1" / "config" / "config_fed_client.json").read_text()
    assert "LeakageScorer" in client
    assert not (tmp_path / "out" / "app" / "config" / "config_fed_client.json").exists()
    note = tmp_path / "out" / "app_site-1" / "custom" / "README.txt"
    assert "class_allow_list" in note.read_text()


def test_the_server_is_told_of_defences_in_apps_that_it_does_not_get(tmp_path: Path) -> None:
    pruning = "nvflare.app_common.filters.PercentilePrivacy"
    filters = [
        {"tasks": ["train"], "filters": [{"path": pruning, "args": {"percentile": 20}}]},
        {"tasks": ["validate"], "filters": [{"path": "theirs.Other", "args": {}}]},
    ]
    job = write_job(tmp_path / "job", deploy_map={"app": ["server"], "app_ward": ["site-7"]})
    (job / "app_ward" / "config").mkdir(parents=True)
    (job / "app" / "config" / "config_fed_client.json").unlink()
    (job / "app_ward" / "config" / "config_fed_client.json").write_text(
        json.dumps(CLIENT | {"task_result_filters": filters})
    )
    attach_audit(job, tmp_path / "out", AuditParts(EXPERIMENT, AUDITOR))
    config = tmp_path / "out" / "app" / "config" / "config_fed_server.json"
    parts = json.loads(config.read_text())["components"]
    log = next(part for part in parts if part["id"] == "gradward_run_log")
    assert log["args"]["other_defences"] == [
        {
            "sites": ["site-7"],
            "kind": "update_filter",
            "name": "PercentilePrivacy",
            "settings": {"percentile": 20},
        }
    ]
    instantiate_class(log["path"], log["args"])


@pytest.mark.parametrize(
    ("job", "changes", "words"),
    [
        ({"deploy_map": {}}, {}, "deploy_map"),
        ({"deploy_map": {"gone": ["@ALL"]}}, {}, "gone"),
        ({"server": []}, {}, "must be a JSON object"),
        ({}, {"experiment": EXPERIMENT | {"channels": 2}}, "channels"),
        ({}, {"auditor": AUDITOR | {"attacks": [{"name": "magic"}]}}, "magic"),
        ({}, {"drain_timeout": -1}, "timeout"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    job: dict[str, Any], changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = write_job(tmp_path / "job", **job)
    with pytest.raises(ValueError, match=words):
        attached(folder, **changes)
    assert not (tmp_path / "audited").exists()


def test_an_audited_job_is_not_audited_again(tmp_path: Path) -> None:
    attached(write_job(tmp_path / "job"))
    with pytest.raises(AttachError, match="already"):
        attach_audit(tmp_path / "audited", tmp_path / "twice", AuditParts(EXPERIMENT, AUDITOR))


def test_a_perturbation_comes_with_its_guard_before_all_other_filters(tmp_path: Path) -> None:
    theirs = {"tasks": ["train"], "filters": [{"path": "theirs.Noise"}]}
    job = write_job(tmp_path / "job", client=CLIENT | {"task_result_filters": [theirs]})
    per_site = {"site-1": {"mode": "class", "fitted_on": "public"}, "site-2": None}
    client = attached(job, perturbation={"per_site": per_site})["client"]
    ours, last = client["task_result_filters"]
    assert last == theirs
    assert classes(ours["filters"]) == ["PerturbationGuard"] and "train" in ours["tasks"]
    assert ours["filters"][0]["args"]["sites"] == ["site-1"]
    assert classes(client["components"])[-2:] == ["Perturbation", "ScriptPerturbation"]
    for part in (*client["components"], *ours["filters"]):
        instantiate_class(part["path"], part["args"])


def test_a_perturbation_that_cannot_work_is_refused(tmp_path: Path) -> None:
    aggregator = {"id": "sum", "path": "theirs.Sum", "args": {"expected_data_kind": "WEIGHTS"}}
    job = write_job(tmp_path / "job", SERVER | {"components": [aggregator]})
    with pytest.raises(AttachError, match="'sum' expects WEIGHTS"):
        attached(job, perturbation={"settings": {}})
    with pytest.raises(AttachError, match="per_site"):
        attached(job, perturbation={"settings": {}, "per_site": {"site-1": None}})


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


COMMAND = ["--model", "net:Net", "--dataset", "ward", "--image-size", "32", "32"]
COMMAND += ["--channels", "3", "--classes", "2", "--lr", "0.01", "--batch-size", "4"]


def test_the_command_writes_what_the_options_say(tmp_path: Path) -> None:
    job, out = str(write_job(tmp_path / "job")), tmp_path / "out"
    more = ["--training", '{"epochs": 3}', "--every-n-rounds", "2", "--model-options", '{"a": 1}']
    result = call("attach", job, "--out", str(out), *COMMAND, *more)
    assert result.exit_code == 0, result.output
    server = json.loads((out / "app" / "config" / "config_fed_server.json").read_text())
    experiment, auditor = (part["args"] for part in server["components"][1:3])
    assert experiment["training"] == {"lr": 0.01, "batch_size": 4, "epochs": 3}
    assert experiment["dataset"] == "ward" and experiment["model_options"] == {"a": 1}
    assert auditor["every_n_rounds"] == 2 and len(auditor["attacks"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--training", "{"], "is not JSON"),
        (["--training", '{"speed": 3}'], "speed"),
        (["--attacks", "{}"], "a JSON list is needed"),
        (["--out", "{job}"], "exists already"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], words: str, tmp_path: Path) -> None:
    job = str(write_job(tmp_path / "job"))
    given = [job if argument == "{job}" else argument for argument in arguments]
    result = call("attach", job, "--out", str(tmp_path / "out"), *COMMAND, *given)
    assert result.exit_code and words in result.output and "Traceback" not in result.output


def test_a_shipped_job_is_exported_by_name(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    assert call("export", "quickstart", "--out", str(out)).exit_code == 0
    shipped = Path(__file__).parents[2] / "jobs" / "quickstart"
    for file in shipped.rglob("*.*"):
        text = file.read_text()
        if file.name == "meta.json":
            # By this name consoles and reports tell jobs apart.
            text = text.replace('"name": "quickstart"', '"name": "mine"')
        assert (out / file.relative_to(shipped)).read_text() == text
    again = call("export", "quickstart", "--out", str(out))
    assert again.exit_code == 1 and "exists already" in again.output
    assert call("export", "quickstart", "--no-custom", "--out", str(tmp_path / "b")).exit_code == 0
    assert not list((tmp_path / "b").rglob("custom"))
    unknown = call("export", "moon")
    assert unknown.exit_code == 1 and "quickstart_defended" in unknown.output
