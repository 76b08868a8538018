"""In a site's settings and policy, and in what passes between it and the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from nvflare.apis.dxo import DataKind
from nvflare.apis.shareable import Shareable

from gradward.attacks.worker_process import WorkerProcess
from gradward.flare.attach_parts import AuditParts
from gradward.flare.audit_spool import AuditSpool
from gradward.flare.canary_training import train_on_canaries
from gradward.flare.certificate import require_mechanism
from gradward.flare.doctor.findings import Kit
from gradward.flare.door import ScoringDoor
from gradward.flare.dp_account import spend_round
from gradward.flare.experiment import experiment_of
from gradward.flare.outgoing import read_result
from gradward.flare.own_code import require_allowed
from gradward.flare.policies import ScoringPolicy
from gradward.flare.recalibration import PublicRecalibration
from gradward.flare.receipt import Receipt
from gradward.flare.script_perturbation import ScriptPerturbation
from gradward.flare.self_attack import SelfAttack
from gradward.flare.site import choose_device, open_site
from gradward.flare.states import load_global_state, read_dxo
from gradward.flare.trainer import LocalTrainer
from gradward.training import TrainingSettings

from ..flare_desk import Desk, experiment
from ..test_flare_attach import AUDITOR, EXPERIMENT
from . import mistake


def opened(folder: Path, **settings: Any) -> Any:
    desk = Desk(folder, experiment())
    desk.settings(**settings)
    return open_site(desk.task("train"))


@mistake("local/gradward.json is not readable JSON")
def broken(folder: Path) -> None:
    desk = Desk(folder, experiment())
    (folder / "local" / "gradward.json").write_text("{,}")
    open_site(desk.task("train"))


mistake("local/gradward.json has unknown entries")(lambda folder: opened(folder, devise="cpu"))
mistake("local/gradward.json and its 'sites' must be")(lambda folder: opened(folder, sites=[]))
mistake("'threads' in local/gradward.json")(lambda folder: opened(folder, threads=0))
mistake("'data' in local/gradward.json must map")(lambda folder: opened(folder, data=[]))
mistake("device … is not known")(lambda folder: choose_device("abacus"))
mistake("device … was chosen")(lambda folder: choose_device("cuda:99"))
mistake("'audit_devices' in local/gradward.json")(lambda folder: opened(folder, audit_devices=1))
mistake("'scope' in local/gradward.json")(lambda folder: opened(folder, scope=1))
mistake("this site works under the privacy scope")(lambda folder: opened(folder, scope="ward"))
mistake("… in local/gradward.json must be an object with")(
    lambda folder: opened(folder, scoring={"open": True})
)
mistake("… in local/gradward.json: … must be true or false")(
    lambda folder: opened(folder, scoring={"enabled": "yes"})
)


@mistake("the job has no … with id")
def no_experiment(folder: Path) -> None:
    desk = Desk(folder, experiment())
    experiment_of(desk.task("train"), "elsewhere")


@mistake("this site trains under a certificate only: the job must have")
def no_certificate(folder: Path) -> None:
    site = opened(folder, certified={"required": True})
    require_mechanism(site, experiment().settings_for(site.name), None)


@mistake("the received weights belong to another model")
def other_model(folder: Path) -> None:
    load_global_state(experiment().build_model(), {"fc.weight": np.zeros(1)})


@mistake("the message holds no data object")
def no_message(folder: Path) -> None:
    read_dxo(Shareable(), DataKind.WEIGHTS)


@mistake("this folder is not that of a site or a server")
def no_kit(folder: Path) -> None:
    Kit.open(folder)


@mistake("this site's policy closes scoring")
def closed(folder: Path) -> None:
    ScoringDoor(folder, ScoringPolicy(enabled=False)).require_open()


@mistake("the receipt is not readable")
def no_receipt(folder: Path) -> None:
    Receipt.verify("{", bytes(32))


@mistake("the result is no data object")
def no_result(folder: Path) -> None:
    read_result(Shareable(), DataKind.WEIGHT_DIFF)


@mistake("this site has no record of the images")
def not_judged(folder: Path) -> None:
    desk = Desk(folder, experiment())
    site = open_site(desk.task("train"))
    SelfAttack([{"name": "batchnorm"}], {"evaluations": 5}).on(site, desk.job, 0, {}, {})


@mistake("the attack worker ended unexpectedly")
def dead_worker(folder: Path) -> None:
    worker = WorkerProcess(folder / "spool", module="gradward.no_such_module")
    worker.request({"id": "site-1 0"}, timeout=60)


@mistake("this site's account of DP-SGD is damaged")
def damaged_account(folder: Path) -> None:
    private = {"epsilon": 1.0, "rounds": 1, "delta": 1e-3}
    (folder / "dp_sgd.json").write_text("[]")
    spend_round(
        folder, TrainingSettings.from_dict({"batch_size": 4, "lr": 0.1, "dp_sgd": private}), 8
    )


@mistake("a script's training has no certificate")
def script_under_certificate(folder: Path) -> None:
    site = opened(folder, certified={"required": True})
    ScriptPerturbation()._hand_out(site, Desk(folder, experiment()).task("train"))


@mistake("this site trains on perturbed images only, but the job's trainer")
def no_perturbation_id(folder: Path) -> None:
    site = opened(folder, perturbation={"required": True})
    settings = experiment().settings_for(site.name)
    LocalTrainer()._perturbation(site, settings, Desk(folder, experiment()).task("train"))


@mistake("a perturbation of all sites but some cannot be guarded")
def half_guarded(folder: Path) -> None:
    perturbation = {"settings": {"mode": "class"}, "per_site": {"site-1": None}}
    AuditParts(EXPERIMENT, AUDITOR, perturbation, 60.0)._guarded_sites()


@mistake("the public images of … on the server are not")
def other_public_images(folder: Path) -> None:
    site = opened(folder)
    job = experiment(public_checksum="sha256:0")
    AuditSpool(job, site).public()


@mistake("to recalibrate BatchNorm takes at least 2")
def nothing_to_recalibrate(folder: Path) -> None:
    with patch("gradward.flare.recalibration.calibration_images", lambda part: []):
        PublicRecalibration(experiment(), opened(folder))


@mistake("the public images of … differ between")
def public_images_differ(folder: Path) -> None:
    site, job = opened(folder), experiment()
    public = job.load_public(site)
    fl_ctx = Desk(folder, job).task("train")
    train_on_canaries(
        site,
        job,
        Shareable(),
        fl_ctx,
        public=public,
        n_images=4,
        perturbation=None,
        aborted=lambda: False,
    )


@mistake("… is not allowed here: the job brings")
def foreign_code(folder: Path) -> None:
    require_allowed("os.system", Desk(folder, experiment()).task("train"))
