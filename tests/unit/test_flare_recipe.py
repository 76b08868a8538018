"""Recipe and job folder are the same job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nvflare.job_config.fed_job_config import FedJobConfig
from nvflare.recipe import SimEnv

from gradward.flare.auditor import InversionAuditor
from gradward.flare.experiment import Experiment
from gradward.flare.gate import LeakageGate
from gradward.flare.guard import PerturbationGuard
from gradward.flare.perturber import Perturbation
from gradward.flare.recipe import AuditRecipe, SiteDefence, SiteGroup
from gradward.flare.shipped_jobs import SHIPPED_JOBS
from gradward.flare.update_filters import UpdateNoise, WithholdBuffers

JOBS = Path(__file__).parents[2] / "jobs"
NOISE = SiteDefence(update_filters=[UpdateNoise(fraction=0.1)])
GATE: dict[str, Any] = {
    "attacks": [{"name": "batchnorm"}],
    "budget": {"evaluations": 10},
    "limits": {"reid": 0.5},
}


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): file.read_text()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def recipe(**changes: Any) -> AuditRecipe:
    values: dict[str, Any] = {
        "name": "test",
        "sites": ["site-1", "site-2", "site-3"],
        "experiment": Experiment("bn_cnn", "histology", [32, 32], 3, 2),
        "auditor": InversionAuditor([{"name": "batchnorm"}], {"evaluations": 5}),
    }
    return AuditRecipe(**(values | changes))


def exported(made: AuditRecipe, folder: Path, app: str = "app") -> dict[str, Any]:
    made.export(str(folder))
    config = folder / "test" / app / "config"
    return {
        side: json.loads((config / f"config_fed_{side}.json").read_text())
        for side in ("server", "client")
        if (config / f"config_fed_{side}.json").is_file()
    }


def test_canaries_pass_every_filter_of_the_training(tmp_path: Path) -> None:
    auditor = InversionAuditor([{"name": "batchnorm"}], {"evaluations": 5}, subject="canary")
    client = exported(recipe(auditor=auditor, defence=NOISE), tmp_path)["client"]
    (trainer,) = client["executors"]
    assert {"train", "canary_update"} <= set(trainer["tasks"])
    for item in client["task_result_filters"]:
        assert {"train", "canary_update"} <= set(item["tasks"])


@pytest.mark.parametrize("name", sorted(path.name for path in JOBS.iterdir() if path.is_dir()))
def test_a_recipe_writes_the_job_folder_to_the_letter(name: str, tmp_path: Path) -> None:
    SHIPPED_JOBS[name]().export(str(tmp_path))
    assert files_of(tmp_path / name) == files_of(JOBS / name)


def test_every_argument_of_a_job_rebuilds_its_component(tmp_path: Path) -> None:
    """What the exporter drops must be a default: else a setting would vanish silently."""
    experiment = Experiment(
        "bn_cnn",
        "histology",
        [32, 32],
        3,
        2,
        training={"lr": 0.3},
        public_set="mnist",
        model_options={"width": 4},
        seed=5,
    )
    defence = SiteDefence(
        perturbation=Perturbation(settings={}, fit_seconds=9.0),
        guard=PerturbationGuard(metrics=["accuracy"], withheld_buffers=True),
        gate=LeakageGate(**GATE, action="warn", every_n_rounds=2),
    )
    client = exported(recipe(experiment=experiment, defence=defence), tmp_path)["client"]
    parts = {part["path"].rpartition(".")[2]: part for part in client["components"]}
    (filters,) = client["task_result_filters"]
    parts |= {part["path"].rpartition(".")[2]: part for part in filters["filters"]}
    for part in (experiment, defence.perturbation, defence.guard, defence.gate):
        assert part is not None
        rebuilt = type(part)(**parts[type(part).__name__]["args"])
        public = {key: value for key, value in vars(part).items() if not key.startswith("_")}
        assert {key: vars(rebuilt)[key] for key in public} == public


def test_filters_stand_in_the_order_that_protects(tmp_path: Path) -> None:
    defence = SiteDefence(
        perturbation=Perturbation(settings={}),
        guard=PerturbationGuard(),
        update_filters=[UpdateNoise(fraction=0.1), WithholdBuffers()],
        gate=LeakageGate(**GATE),
    )
    job = exported(recipe(defence=defence), tmp_path)
    (entry,) = job["client"]["task_result_filters"]
    names = [part["path"].rpartition(".")[2] for part in entry["filters"]]
    assert names == ["PerturbationGuard", "UpdateNoise", "WithholdBuffers", "LeakageGate"]
    assert entry["tasks"] == ["train", "validate", "submit_model", "score_reconstruction"]
    aggregator = next(p for p in job["server"]["components"] if p["id"] == "aggregator")
    assert aggregator["args"] == {"withheld": "buffers"}


def test_groups_get_apps_of_their_own(tmp_path: Path) -> None:
    made = recipe(other_defences={"noise": SiteGroup(["site-2"], NOISE)})
    assert "server" in exported(made, tmp_path)
    meta = json.loads((tmp_path / "test" / "meta.json").read_text())
    assert meta["deploy_map"] == {"app": ["server", "site-1", "site-3"], "app_noise": ["site-2"]}
    (tmp_path / "again").mkdir()
    noisy = exported(made, tmp_path / "again", "app_noise")
    assert set(noisy) == {"client"} and noisy["client"]["task_result_filters"]


def test_nvflares_own_recipe_methods_still_work(tmp_path: Path) -> None:
    made = recipe(other_defences={"noise": SiteGroup(["site-2"], NOISE)})
    made.add_client_config({"default_task_fetch_interval": 2})
    made.add_client_output_filter(WithholdBuffers(), tasks=["extra"], clients=["app_noise"])
    client = exported(made, tmp_path)["client"]
    assert client["default_task_fetch_interval"] == 2 and not client["task_result_filters"]
    noisy = json.loads(
        (tmp_path / "test" / "app_noise" / "config" / "config_fed_client.json").read_text()
    )
    assert len(noisy["task_result_filters"]) == 2


def test_without_custom_folder_no_byoc_right_is_needed(tmp_path: Path) -> None:
    recipe(custom_folder=False).export(str(tmp_path))
    assert not list(tmp_path.rglob("custom"))


def test_a_simulation_has_the_jobs_own_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated: list[list[str]] = []

    def note(self: FedJobConfig, workspace: str, clients: str, **options: Any) -> int:
        simulated.append(clients.split(","))
        return 0

    monkeypatch.setattr(FedJobConfig, "simulator_run", note)
    made = recipe(sites=["site-9", "site-1", "ward"])
    made.run(SimEnv(num_clients=2, workspace_root=str(tmp_path)))
    made.run(SimEnv(clients=["ward"], workspace_root=str(tmp_path)))
    assert simulated == [["site-9", "site-1"], ["ward"]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sites": "site-1"}, "sites"),
        ({"sites": ["site-1", "site-1"]}, "once in sites"),
        ({"min_clients": 4}, "from 1 to 3"),
        ({"experiment": {"model": "bn_cnn"}}, "experiment"),
        ({"other_defences": {"noise": SiteGroup(["site-7"], NOISE)}}, "site-7"),
        ({"other_defences": {"a b": SiteGroup(["site-1"], NOISE)}}, "a b"),
        (
            {
                "other_defences": {
                    "one": SiteGroup(["site-1"], NOISE),
                    "two": SiteGroup(["site-1"], NOISE),
                }
            },
            "site-1",
        ),
        ({"other_defences": {"x": SiteGroup(["site-1", "site-2", "site-3"], NOISE)}}, "no site"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        recipe(**changes)


def test_a_guard_without_perturbation_is_refused() -> None:
    with pytest.raises(ValueError, match="guard"):
        SiteDefence(guard=PerturbationGuard())
    with pytest.raises(ValueError, match="strengthen"):
        SiteDefence(gate=LeakageGate(**GATE, action="strengthen"))


def test_the_quorum_leaves_room_for_one_fault(tmp_path: Path) -> None:
    recipe().export(str(tmp_path))
    assert json.loads((tmp_path / "test" / "meta.json").read_text())["min_clients"] == 2
