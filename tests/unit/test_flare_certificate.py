"""A certified site: nothing but what (epsilon, delta) covers leaves it, and never a live score."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.widgets.streaming import AnalyticsSender

from gradward.data import ImageSet
from gradward.defenses.ledger import PrivacyLedger
from gradward.flare.certificate import banded, may_be_measured
from gradward.flare.gate import LeakageGate
from gradward.flare.guard import PerturbationGuard
from gradward.flare.perturber import Perturbation, PerturbedImages
from gradward.flare.perturber_store import PerturberStore
from gradward.flare.policies import CertifiedPolicy
from gradward.flare.protocol import SCORE_TASK, ScoreReply, ScoreRequest
from gradward.flare.receipt import MODE_META, PERTURBED_META
from gradward.flare.scorer import LeakageScorer
from gradward.flare.site import Site, open_site
from gradward.report.site_folder import GATE
from gradward.training import TrainingSettings

from .flare_desk import Desk, FlatPerturbation, FlatViews, experiment

DP_SGD = {
    "batch_size": 4,
    "lr": 0.02,
    "dp_sgd": {"epsilon": 4.0, "delta": 1e-3, "rounds": 3, "max_grad_norm": 1.0},
}


class DpClass(FlatPerturbation):
    """A perturbation that says it is certified."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = {"mode": "dp-class", "epsilon": 2.0, "delta": 1e-5}

    def open(self, *arguments: Any) -> PerturbedImages:
        flat = super().open(*arguments)
        return PerturbedImages(flat.source, "dp-class", "release-1", (2.0, 1e-5))


class Listener(AnalyticsSender):
    """Keeps the tags of what is streamed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def add(self, tag: str, *rest: Any, **named: Any) -> None:
        self.tags.add(tag)


def certified_desk(folder: Path, training: dict[str, Any], **policy: Any) -> Desk:
    job = experiment(model="lenet", model_options={}, training=training)
    components = {"analytics_sender": Listener(), "perturbation": DpClass()}
    desk = Desk(folder, job, components=components)
    desk.settings(certified={"required": True, **policy})
    return desk


def statement(desk: Desk) -> dict[str, Any]:
    file = desk.root / "gradward" / "jobs" / "job-1" / "certificate.json"
    return dict(json.loads(file.read_text()))


def tags(desk: Desk) -> set[str]:
    listener = desk.components["analytics_sender"]
    assert isinstance(listener, Listener)
    return listener.tags


def score(desk: Desk) -> ScoreReply:
    images = np.zeros((1, 3, 32, 32), np.float32)
    request = ScoreRequest(desk.site, 0, "batchnorm", images, None, "sha256:0")
    fl_ctx = desk.task(SCORE_TASK)
    reply = LeakageScorer().execute(SCORE_TASK, request.to_shareable(), fl_ctx, Signal())
    return ScoreReply.from_shareable(reply)


def test_dp_sgd_is_certified_paid_for_and_passes_the_guard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = certified_desk(tmp_path, DP_SGD)
    fl_ctx = desk.task("train")
    with caplog.at_level(logging.INFO):
        reply = desk.answer(fl_ctx, perturbed=False)
    passed = from_shareable(PerturbationGuard().process(reply, fl_ctx))
    assert passed.meta == {MetaKey.NUM_STEPS_CURRENT_ROUND: 4, MODE_META: "dp-sgd"}
    said = statement(desk)
    assert (said["run"], said["mechanism"], said["epsilon"]) == ("certificate", "dp-sgd", 4.0)
    assert "this run is certified: epsilon 4" in caplog.text and "loss" not in caplog.text
    spent = PrivacyLedger(tmp_path / "gradward" / "ledger.sqlite").total()
    assert (spent.epsilon, spent.delta) == (4.0, 1e-3) and said["site_total"]["epsilon"] == 4.0
    assert tags(desk) == {"train/steps"}, "neither the loss nor the epsilon of so many images"
    later = desk.task("train", "task-2")
    assert desk.answer(later, 1, perturbed=False).get_return_code() == ReturnCode.OK
    assert PrivacyLedger(tmp_path / "gradward" / "ledger.sqlite").total().epsilon == 4.0


def test_dp_class_is_certified_and_tells_no_exact_count(tmp_path: Path) -> None:
    desk = certified_desk(tmp_path, {"batch_size": 5, "lr": 0.02})
    fl_ctx = desk.task("train")
    reply = desk.answer(fl_ctx)
    passed = from_shareable(PerturbationGuard().process(reply, fl_ctx))
    assert passed.meta == {MetaKey.NUM_STEPS_CURRENT_ROUND: 4, MODE_META: "dp-class"}
    assert PERTURBED_META not in passed.meta
    said = statement(desk)
    assert (said["mechanism"], said["epsilon"], said["delta"]) == ("dp-class", 2.0, 1e-5)
    assert tags(desk) == {"train/steps", "train/loss"}, "the loss is that of the drawn pictures"


@pytest.mark.parametrize("certified", [True, False])
def test_figures_of_a_fit_are_streamed_only_without_a_certificate(
    tmp_path: Path, certified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = SimpleNamespace(
        mode="dp-class",
        version="release-1",
        certificate=(2.0, 1e-5),
        rate=0.0,
        report={"fit_seconds": {"features": 3.0}, "clipped": 0.25},
        views=lambda images, generator: FlatViews(images.labels, images.images.shape[1:]),
    )
    monkeypatch.setattr(PerturberStore, "load", lambda *arguments: fitted)
    desk = certified_desk(tmp_path, {"batch_size": 5, "lr": 0.02}, required=certified)
    settings = {"mode": "dp-class", "epsilon": 2.0, "delta": 1e-5}
    desk.components["perturbation"] = Perturbation(settings)
    assert desk.answer(desk.task("train")).get_return_code() == ReturnCode.OK
    assert ("defense/clipped" in tags(desk)) != certified


@pytest.mark.parametrize(
    ("training", "perturbation", "words"),
    [
        ({"batch_size": 4, "lr": 0.02}, None, "'dp_sgd' with 'epsilon'"),
        (
            {**DP_SGD, "dp_sgd": {"noise_multiplier": 1.0, "delta": 1e-3}},
            None,
            "'dp_sgd' with 'epsilon'",
        ),
        ({"batch_size": 4, "lr": 0.02}, {"mode": "class"}, "mode 'class' cannot give"),
        (DP_SGD, {"mode": "learned"}, "mode 'learned' cannot give"),
    ],
)
def test_a_job_that_gives_no_certificate_is_refused(
    tmp_path: Path,
    training: dict[str, Any],
    perturbation: dict[str, Any] | None,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    desk = certified_desk(tmp_path, training)
    if perturbation is not None:
        component = FlatPerturbation()
        component.settings = perturbation
        desk.components["perturbation"] = component
    reply = desk.answer(desk.task("train"), perturbed=perturbation is not None)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION and "DXO" not in reply
    assert words in caplog.text
    assert not (tmp_path / "gradward" / "jobs" / "job-1" / "certificate.json").exists()


def test_the_sites_budget_over_all_jobs_refuses_dp_sgd(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = certified_desk(tmp_path, DP_SGD)
    desk.settings(certified={"required": True}, perturbation={"max_epsilon": 3.0})
    reply = desk.answer(desk.task("train"), perturbed=False)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "would have spent epsilon 4" in caplog.text


def test_live_scoring_is_closed_whatever_else_is_set(tmp_path: Path) -> None:
    desk = certified_desk(tmp_path, DP_SGD)
    desk.settings(certified={"required": True}, scoring={"enabled": True})
    desk.answer(desk.task("train"), perturbed=False)
    reply = score(desk)
    assert reply.status == "refused" and "closes scoring" in reply.reason


def test_a_certificate_and_a_live_audit_exclude_each_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the site's policy is changed under way."""
    desk = certified_desk(tmp_path, DP_SGD)
    desk.answer(desk.task("train"), perturbed=False)
    desk.settings()
    reply = score(desk)
    assert reply.status == "refused" and "this run is certified" in reply.reason
    assert desk.answer(desk.task("train", "t-2"), 1, False).get_return_code() != ReturnCode.OK
    assert "the two exclude each other" in caplog.text
    assert statement(desk)["run"] == "certificate"

    other = certified_desk(tmp_path / "other", DP_SGD)
    other.settings()
    assert other.answer(other.task("train"), perturbed=False).get_return_code() == ReturnCode.OK
    assert statement(other)["run"] == "live audit" and "epsilon" not in statement(other)
    other.settings(certified={"required": True})
    assert other.answer(other.task("train", "t-2"), 1, False).get_return_code() != ReturnCode.OK
    assert statement(other)["run"] == "live audit"


def test_a_damaged_statement_stops_the_run(tmp_path: Path) -> None:
    desk = certified_desk(tmp_path, DP_SGD)
    desk.answer(desk.task("train"), perturbed=False)
    (tmp_path / "gradward" / "jobs" / "job-1" / "certificate.json").write_text("{")
    assert desk.answer(desk.task("train", "t-2"), 1, False).get_return_code() != ReturnCode.OK


def test_a_run_whose_door_is_closed_is_neither(tmp_path: Path) -> None:
    desk = certified_desk(tmp_path, DP_SGD)
    desk.settings(scoring={"enabled": False})
    desk.answer(desk.task("train"), perturbed=False)
    assert statement(desk)["run"] == "uncertified"
    desk.settings()
    desk.answer(desk.task("train", "t-2"), 1, False)
    assert statement(desk)["run"] == "live audit", "the door was opened under way"
    desk.settings(scoring={"enabled": False})
    desk.answer(desk.task("train", "t-3"), 2, False)
    assert statement(desk)["run"] == "live audit", "what left cannot be taken back"


def test_the_guard_of_a_certified_site_blocks_what_has_no_certificate(tmp_path: Path) -> None:
    """A perturbed update made before the policy was changed, for one."""
    desk = Desk(tmp_path, experiment())
    fl_ctx = desk.task("train")
    perturbed = desk.answer(fl_ctx)
    desk.settings(certified={"required": True})
    guard = PerturbationGuard()
    assert guard.process(perturbed, fl_ctx).get_return_code() != ReturnCode.OK
    assert "no certificate" in desk.journal("guard.log")[-1]["reason"]


def test_the_guard_of_any_other_site_blocks_dp_sgd_on_raw_images(tmp_path: Path) -> None:
    desk = certified_desk(tmp_path, DP_SGD)
    desk.settings()
    fl_ctx = desk.task("train")
    reply = desk.answer(fl_ctx, perturbed=False)
    assert PerturbationGuard().process(reply, fl_ctx).get_return_code() != ReturnCode.OK


def test_the_gate_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attack(*arguments: Any) -> None:
        raise AssertionError("the data was looked at")

    monkeypatch.setattr("gradward.flare.self_attack.SelfAttack.on", attack)
    gate = LeakageGate([{"name": "matching"}], {"evaluations": 10}, {"recovered": 0.0})
    desk = certified_desk(tmp_path, DP_SGD)
    fl_ctx = desk.task("train")
    reply = desk.answer(fl_ctx, perturbed=False)
    assert gate.process(reply, fl_ctx) is reply
    assert not (tmp_path / "gradward" / "jobs" / "job-1" / GATE).exists()


@pytest.mark.parametrize(("min_patients", "allowed"), [(50, False), (2, True)])
def test_clean_metrics_need_enough_held_out_patients(
    tmp_path: Path, min_patients: int, allowed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    desk = certified_desk(tmp_path, DP_SGD, min_patients=min_patients)
    reply = desk.answer(desk.task("validate"))
    assert (reply.get_return_code() == ReturnCode.OK) == allowed
    assert allowed or "metrics on clean images are closed" in caplog.text
    desk.answer(desk.task("train"), perturbed=False)
    assert ("valid/accuracy" in tags(desk)) == allowed


def images(patients: list[str] | None, number: int = 6) -> ImageSet:
    named = None if patients is None else tuple(patients)
    return ImageSet(torch.zeros(number, 1, 8, 8), torch.zeros(number, dtype=torch.int64), named)


def test_patients_are_counted_not_images_and_none_may_be_trained_on(tmp_path: Path) -> None:
    site = Site("a", tmp_path, tmp_path, certified=CertifiedPolicy(required=True, min_patients=3))
    training = images(list("uvwxyz"))
    assert may_be_measured(site, images(list("aabbcc")), training)
    assert not may_be_measured(site, images(list("aaabbb")), training), "two patients"
    assert not may_be_measured(site, images(list("abcdez")), training), "z is trained on"
    assert may_be_measured(site, images(None), images(None)), "each image is one"
    assert may_be_measured(Site("a", tmp_path, tmp_path), images(list("aaaaaa")), training)


def test_steps_tell_the_number_of_images_only_as_a_power_of_two() -> None:
    settings = TrainingSettings(batch_size=4, epochs=2)
    told = {n: banded(settings, n).number_of_steps(n) for n in range(1, 200)}
    assert set(told.values()) == {2, 4, 8, 16, 32, 64}
    for n, steps in told.items():
        assert steps <= settings.number_of_steps(n) < 2 * steps
    assert banded(TrainingSettings(steps=7), 100).steps == 7, "the job's own number tells nothing"


@pytest.mark.parametrize(
    "values", [{"required": "yes"}, {"min_patients": -1}, {"min_patients": 0.5}, {"epsilon": 1}]
)
def test_wrong_settings_close_the_site(tmp_path: Path, values: dict[str, Any]) -> None:
    desk = certified_desk(tmp_path, DP_SGD)
    desk.settings(certified=values)
    with pytest.raises(ValueError, match="certified"):
        open_site(desk.task("train"))
    assert desk.answer(desk.task("train"), perturbed=False).get_return_code() != ReturnCode.OK


def test_an_update_smuggled_as_metrics_does_not_pass(tmp_path: Path) -> None:
    desk = certified_desk(tmp_path, DP_SGD)
    smuggled: Shareable = DXO(DataKind.METRICS, data={"accuracy": np.zeros(9)}).to_shareable()
    answer = PerturbationGuard().process(smuggled, desk.task("validate"))
    assert answer.get_return_code() != ReturnCode.OK
