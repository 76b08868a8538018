"""What the run's log says of a job, its updates and its scalars, also when things go wrong."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nvflare.apis.analytix import AnalyticsDataType
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import EventScope, FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.analytix_utils import create_analytic_dxo
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.fuel.utils.class_utils import instantiate_class

from gradward.flare.line_file import LineFile
from gradward.flare.receipt import Receipt
from gradward.flare.run_log import RunLog
from gradward.report.run_folder import ScalarRecord, read_run

from .fake_engine import FakeEngine, context

JOBS = Path(__file__).parents[2] / "jobs"
LOCAL, FEDERATED = "analytix_log_stats", "fed.analytix_log_stats"
WEIGHTS = {"conv.weight": np.ones(2), "bn.running_mean": np.zeros(2)}
WITHOUT_BUFFERS = {"conv.weight": np.ones(2)}


class ServerEngine(FakeEngine):
    """The server's process of a shipped job, with its folders as NVFlare lays them out."""

    sites = ("site-1", "site-2")

    def get_clients(self) -> list[Any]:
        return [SimpleNamespace(name=site) for site in reversed(self.sites)]

    def get_workspace(self) -> Any:
        workspace = super().get_workspace()
        workspace.get_app_config_dir = lambda job: str(self.root / job / "app_server" / "config")
        workspace.get_job_meta_path = lambda job: str(self.root / job / "meta.json")
        return workspace


class Server:
    """Fires the events of one job."""

    def __init__(self, root: Path, job: str = "quickstart", **changes: Any) -> None:
        self.root, self.run_folder = root, root / "job-1"
        if not self.run_folder.exists():
            shutil.copytree(JOBS / job / "app", self.run_folder / "app_server")
            shutil.copy(JOBS / job / "meta.json", self.run_folder / "meta.json")
        config = self.run_folder / "app_server" / "config" / "config_fed_server.json"
        self.components: dict[str, FLComponent] = {
            part["id"]: instantiate_class(part["path"], part["args"])
            for part in json.loads(config.read_text())["components"]
            if part["id"] in ("experiment", "auditor", "run_log")
        }
        self.sites = json.loads((self.run_folder / "meta.json").read_text())["custom_props"][
            "sites"
        ]
        log = self.components["run_log"]
        assert isinstance(log, RunLog)
        self.log = log
        self.warnings: list[str] = []
        log.log_warning = lambda ctx, text, **more: self.warnings.append(text)  # type: ignore[method-assign]
        self.fire(EventType.START_RUN)

    def fire(self, event: str, peer: str | None = None, **props: Any) -> None:
        fl_ctx = context(self.root, {}, "simulator_server")
        engine = ServerEngine(self.root, self.components)
        engine.sites = tuple(self.sites)
        for key, value in {ReservedKey.ENGINE: engine, **props}.items():
            fl_ctx.set_prop(key, value, private=True, sticky=False)
        if peer is not None:
            other = FLContext()
            other.set_prop(ReservedKey.IDENTITY_NAME, peer, private=False)
            fl_ctx.set_peer_context(other)
        self.log.handle_event(event, fl_ctx)

    def send_task(self, weights: dict[str, Any]) -> None:
        task = DXO(DataKind.WEIGHTS, data=weights).to_shareable()
        self.fire(AppEventType.BEFORE_TRAIN_TASK, **{AppConstants.TRAIN_SHAREABLE: task})

    def accept(
        self, site: str, number: int, data: dict[str, Any], accepted: bool = True, **meta: Any
    ) -> None:
        result = DXO(DataKind.WEIGHT_DIFF, data=data, meta=meta).to_shareable()
        result.add_cookie(AppConstants.CONTRIBUTION_ROUND, number)
        self.fire(
            AppEventType.AFTER_CONTRIBUTION_ACCEPT,
            peer=site,
            **{
                AppConstants.TRAINING_RESULT: result,
                AppConstants.AGGREGATION_ACCEPTED: accepted,
            },
        )

    def stream(self, tag: str, value: Any, step: int | None, site: str | None = None) -> None:
        more = {} if step is None else {"global_step": step}
        kind = AnalyticsDataType.SCALARS if isinstance(value, dict) else AnalyticsDataType.SCALAR
        message: Shareable = create_analytic_dxo(tag, value, kind, **more).to_shareable()
        props: dict[str, Any] = {FLContextKey.EVENT_DATA: message}
        if site is not None:
            message.set_peer_props({ReservedKey.IDENTITY_NAME: site})
            props[FLContextKey.EVENT_SCOPE] = EventScope.FEDERATION
        self.fire(LOCAL if site is None else FEDERATED, **props)


def receipt(mode: str) -> str:
    facts = Receipt("job", "site-1", "train", "1", 0, "", mode, "", 1, 0, 1, {})
    return facts.sign(b"the site's secret, which the server does not have")


def test_the_configuration_is_the_jobs(tmp_path: Path) -> None:
    run = read_run(Server(tmp_path).run_folder)
    assert run.configuration is not None
    assert run.configuration.job == "quickstart"
    assert run.configuration.rounds == 3
    assert run.configuration.sites == ("site-1", "site-2", "site-3")
    assert run.configuration.experiment["public_set"] == "histology"
    assert run.configuration.experiment["per_site"] == {"site-1": {"batch_size": 1}}
    assert run.configuration.audit["subject"] == "live"
    assert [item["name"] for item in run.configuration.audit["attacks"]] == [
        "batchnorm",
        "matching",
    ]
    assert run.configuration.defences == ()


def test_defences_of_all_apps_are_in_it(tmp_path: Path) -> None:
    run = read_run(Server(tmp_path, "defense_comparison").run_folder)
    assert run.configuration is not None
    found = [(item.sites, item.kind, item.name) for item in run.configuration.defences]
    assert found == [
        (("site-2",), "perturbation", "Perturbation"),
        (("site-2",), "guard", "PerturbationGuard"),
        (("site-4",), "update_filter", "UpdateNoise"),
        (("site-5",), "update_filter", "UpdatePruning"),
        (("site-6",), "update_filter", "WithholdBuffers"),
    ]
    settings = [dict(item.settings) for item in run.configuration.defences]
    assert settings[0] == {"mode": "class", "fitted_on": "public"}
    assert settings[2] == {"fraction": 0.1}


def test_a_defence_of_every_site_names_none(tmp_path: Path) -> None:
    server = Server(tmp_path)
    config = server.run_folder / "app_server" / "config"
    client = json.loads((config / "config_fed_client.json").read_text())
    guard = {"path": "gradward.flare.guard.PerturbationGuard", "args": {"sites": ["site-2"]}}
    noise = {"path": "gradward.flare.update_filters.UpdateNoise", "args": {"fraction": 0.5}}
    client["task_result_filters"] = [{"tasks": ["train"], "filters": [guard, noise]}]
    perturbation = {"settings": {"mode": "class"}, "per_site": {"site-1": None, "site-3": {}}}
    client["components"].append(
        {"id": "p", "path": "gradward.flare.perturber.Perturbation", "args": perturbation}
    )
    (config / "config_fed_client.json").write_text(json.dumps(client))
    for side in ("server", "client"):
        content = json.loads((config / f"config_fed_{side}.json").read_text())
        args = next(part for part in content["components"] if part["id"] == "experiment")["args"]
        args["training"]["dp_sgd"] = {"noise_multiplier": 1.0}
        (config / f"config_fed_{side}.json").write_text(json.dumps(content))
    run = read_run(Server(tmp_path).run_folder)
    assert run.configuration is not None
    assert [(item.sites, item.kind) for item in run.configuration.defences] == [
        (None, "dp_sgd"),
        (("site-2",), "perturbation"),
        (("site-3",), "perturbation"),
        (("site-2",), "guard"),
        (None, "update_filter"),
    ]


def test_updates_say_what_the_sites_state(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.send_task(WEIGHTS)
    server.accept("site-1", 0, WEIGHTS, gradward_receipt=receipt("none"))
    server.accept("site-2", 0, WEIGHTS, perturbation_mode="dp-class")
    server.accept("site-3", 0, WITHOUT_BUFFERS)
    server.accept("site-1", 1, WEIGHTS, accepted=False, perturbation_mode="class")
    server.accept("site-2", 1, WEIGHTS, perturbation_mode="x" * 1000)
    server.accept("site-3", 1, WEIGHTS, gradward_receipt="{}")
    found = [(u.site, u.round, u.mode, u.buffers) for u in read_run(server.run_folder).updates]
    assert found == [
        ("site-1", 0, "undefended", "seen"),
        ("site-2", 0, "dp-class", "seen"),
        ("site-3", 0, None, "withheld"),
        ("site-2", 1, None, "seen"),
        ("site-3", 1, None, "seen"),
    ]
    assert not server.warnings


def test_a_model_without_batchnorm_withholds_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.send_task(WITHOUT_BUFFERS)
    server.accept("site-1", 0, WITHOUT_BUFFERS)
    assert [update.buffers for update in read_run(server.run_folder).updates] == ["none"]


def test_all_scalars_are_kept_whoever_streams_them(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.stream("valid/accuracy", 0.5, 2, site="site-1")
    server.stream("audit/open", 3, 0)
    server.stream("theirs", {"a": 1.0, "b": float("nan")}, None, site="site-2")
    assert read_run(server.run_folder).scalars == [
        ScalarRecord("site-1", "valid/accuracy", 2, 0.5),
        ScalarRecord("server", "audit/open", 0, 3.0),
        ScalarRecord("site-2", "theirs/a", 0, 1.0),
    ]


def test_a_restarted_server_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    first = Server(tmp_path)
    first.accept("site-1", 0, WEIGHTS)
    first.stream("train/loss", 0.5, 0, site="site-1")
    with (first.run_folder / "scalars.jsonl").open("a") as file:
        file.write('{"site": "site-1", "ta')
    again = Server(tmp_path)
    for number in (0, 1):
        again.accept("site-1", number, WEIGHTS)
        again.stream("train/loss", 0.5, number, site="site-1")
    run = read_run(again.run_folder)
    assert [update.round for update in run.updates] == [0, 1]
    assert [scalar.step for scalar in run.scalars] == [0, 1]


def test_what_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    server = Server(tmp_path)
    (server.run_folder / "updates.jsonl").unlink()
    (server.run_folder / "updates.jsonl").mkdir()
    (server.run_folder / "meta.json").write_text("{")
    server.fire(EventType.START_RUN)
    for number in range(3):
        server.accept("site-1", number, WEIGHTS)
        server.stream("train/loss", 0.5, number)
    assert len(server.warnings) == 2, "of the configuration and of the updates, once each"
    lines = (server.run_folder / "scalars.jsonl").read_text().splitlines()
    assert len(lines) == 3


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "lines.jsonl")
    file.append({"a": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.path.stat().st_size + 4, hard))
    try:
        with pytest.raises(OSError, match=r".+"):
            file.append({"a": "as long as it takes"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.append({"a": 2})
    assert file.path.read_text() == '{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"experiment_id": ""}, "experiment_id"),
        ({"auditor_id": 3}, "auditor_id"),
        ({"other_defences": [{"kind": "guard"}]}, "other_defences"),
        ({"other_defences": [{"sites": None, "kind": "wall"}]}, "wall"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        RunLog(**arguments)
