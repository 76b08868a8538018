"""A site's own attack on its update decides whether the update leaves."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply

from gradward.flare.gate import LeakageGate
from gradward.metrics.scores import Scores
from gradward.report.site_folder import GATE

from .flare_desk import Desk, experiment

WITHHELD = make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR)
ATTACK: dict[str, Any] = {
    "attacks": [{"name": "matching"}],
    "budget": {"evaluations": 150},
    "limits": {"recovered": 0.3},
}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """The one-image site: what it sends undefended shows its image."""
    job = experiment(training={"batch_size": 1, "lr": 0.02}, model_options={"width": 16})
    return Desk(tmp_path, job, "site-1")


def scores(**values: float) -> Scores:
    harmless: dict[str, Any] = dict.fromkeys(Scores.__dataclass_fields__, 0.0)
    return Scores(**(harmless | values))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the attack finds, in place of an attack."""
    values: dict[str, float] = {}
    monkeypatch.setattr("gradward.flare.self_attack.SelfAttack.on", lambda *rest: scores(**values))
    return values


def trained(desk: Desk, number: int = 0) -> tuple[FLContext, Shareable]:
    fl_ctx = desk.task("train")
    return fl_ctx, desk.answer(fl_ctx, number, perturbed=False)


def test_it_withholds_an_update_that_leaks_and_lets_a_defended_one_go(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    gate = LeakageGate(**ATTACK)
    fl_ctx, raw = trained(desk)
    with caplog.at_level(logging.WARNING):
        assert gate.process(raw, fl_ctx) == WITHHELD
    assert "recovered beyond the limit in round 0" in caplog.text
    fl_ctx = desk.task("train", "task-2")
    defended = desk.answer(fl_ctx, 1)
    assert gate.process(defended, fl_ctx) is defended
    withheld, passed = desk.journal(GATE)
    assert withheld["verdict"] == "withheld" and withheld["recovered"] > 0.3
    assert passed["verdict"] == "passed" and passed["recovered"] < 0.1


def test_a_withheld_update_does_not_leave_as_the_local_model(
    desk: Desk, measured: dict[str, float]
) -> None:
    measured["recovered"] = 0.9
    fl_ctx, raw = trained(desk)
    assert LeakageGate(**ATTACK).process(raw, fl_ctx) == WITHHELD
    assert "DXO" not in desk.answer(desk.task("submit_model", "task-2"))
    measured["recovered"] = 0.0
    fl_ctx, raw = trained(desk, 1)
    assert LeakageGate(**ATTACK).process(raw, fl_ctx) is raw
    assert "DXO" in desk.answer(desk.task("submit_model", "task-4"))


def test_a_warning_lets_it_go(desk: Desk, measured: dict[str, float]) -> None:
    measured["recovered"] = 0.9
    fl_ctx, raw = trained(desk)
    assert LeakageGate(**ATTACK, action="warn").process(raw, fl_ctx) is raw
    assert desk.journal(GATE)[-1]["reason"] == "recovered beyond the limit in round 0"


def test_strengthening_is_for_the_next_rounds(desk: Desk, measured: dict[str, float]) -> None:
    measured["recovered"] = 0.9
    fl_ctx, raw = trained(desk)
    gate = LeakageGate(**ATTACK, action="strengthen", strengthen_by=0.6)
    assert gate.process(raw, fl_ctx) == WITHHELD
    assert desk.components["perturbation"].strengthened == [0.6]  # type: ignore[attr-defined]


@pytest.mark.parametrize("noted", [True, False])
def test_what_cannot_be_strengthened_is_withheld_all_the_same(
    desk: Desk, measured: dict[str, float], noted: bool
) -> None:
    """Also where the error that says why cannot be kept, as on a full disk."""
    measured["recovered"] = 0.9
    del desk.components["perturbation"]
    fl_ctx, raw = trained(desk)
    errors = desk.root / "gradward" / "jobs" / "job-1" / "errors.log"
    if not noted:
        errors.mkdir(parents=True)
    gate = LeakageGate(**ATTACK, action="strengthen", on_failure="pass")
    assert gate.process(raw, fl_ctx) == WITHHELD
    assert "could not be strengthened" in desk.journal(GATE)[-1]["reason"]
    assert errors.is_file() == noted


def test_values_that_cannot_be_shown_change_no_verdict(
    desk: Desk, measured: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no such sender")

    monkeypatch.setattr("gradward.flare.gate.stream_scalars", refuse)
    desk.settings(gate={"stream": True})
    measured["recovered"] = 0.9
    fl_ctx, raw = trained(desk)
    assert LeakageGate(**ATTACK, on_failure="pass").process(raw, fl_ctx) == WITHHELD


@pytest.mark.parametrize("on_failure", ["withhold", "pass"])
@pytest.mark.parametrize("failure", ["no attack applies", "undefined", "RuntimeError", "no note"])
def test_an_update_that_was_not_judged_goes_by_configuration(
    desk: Desk, failure: str, on_failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fl_ctx, raw = trained(desk)
    options = dict(ATTACK)
    if failure == "no attack applies":
        options["attacks"] = [{"name": "matching", "max_images": 0}]
    elif failure == "undefined":
        undefined = scores(recovered=float("nan"))
        monkeypatch.setattr("gradward.flare.self_attack.SelfAttack.on", lambda *rest: undefined)
    elif failure == "no note":
        fl_ctx = desk.task("train")
    else:

        def explode(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("smith.png")

        monkeypatch.setattr("gradward.flare.self_attack.run_portfolio", explode)
    reply = LeakageGate(**options, on_failure=on_failure).process(raw, fl_ctx)
    assert reply == WITHHELD if on_failure == "withhold" else reply is raw
    entry = desk.journal(GATE)[-1]
    assert failure in entry["reason"] and "smith" not in json.dumps(entry)


def test_an_attack_that_broke_is_a_failure(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*args: Any) -> None:
        raise FloatingPointError("no finite loss")

    monkeypatch.setattr("gradward.attacks.matching.MatchingOptions.run", diverge)
    fl_ctx, raw = trained(desk)
    assert LeakageGate(**ATTACK).process(raw, fl_ctx) == WITHHELD
    assert "matching broke" in desk.journal(GATE)[-1]["reason"]


def test_only_updates_of_gated_rounds_and_sites_are_attacked(
    desk: Desk, measured: dict[str, float]
) -> None:
    measured["recovered"] = 0.9
    gate = LeakageGate(**ATTACK, every_n_rounds=2)
    fl_ctx, raw = trained(desk, 1)
    assert gate.process(raw, fl_ctx) is raw
    assert LeakageGate(**ATTACK, sites=["site-2"]).process(raw, fl_ctx) is raw
    fl_ctx, raw = trained(desk, 2)
    assert gate.process(raw, fl_ctx) == WITHHELD
    metrics = make_reply(ReturnCode.OK)
    assert gate.process(metrics, desk.task("validate")) is metrics
    error = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    assert gate.process(error, fl_ctx) is error
    fl_ctx.set_prop(FLContextKey.FILTER_DIRECTION, FilterKey.IN, private=True, sticky=False)
    assert gate.process(raw, fl_ctx) is raw, "on the server, which shares a policy file"


@pytest.mark.parametrize("allowed", [False, True])
def test_scores_are_streamed_only_where_the_site_allows_it(
    desk: Desk, measured: dict[str, float], allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured["recovered"] = 0.12345
    desk.settings(gate={"stream": allowed})
    sent: list[Any] = []
    monkeypatch.setattr(
        "gradward.flare.gate.stream_scalars", lambda fl_ctx, *rest: sent.append(rest)
    )
    fl_ctx, raw = trained(desk)
    assert LeakageGate(**ATTACK).process(raw, fl_ctx) is raw
    expected = [("analytics_sender", "defense/gate", {"recovered": 0.123}, 0)]
    assert sent == (expected if allowed else [])


@pytest.mark.parametrize(
    "changes",
    [
        {"attacks": []},
        {"attacks": [{"name": "guessing"}]},
        {"budget": {"evaluations": 0}},
        {"limits": {}},
        {"limits": {"psnr": 3}},
        {"limits": {"reid": "low"}},
        {"action": "shout"},
        {"on_failure": "retry"},
        {"every_n_rounds": 0},
        {"strengthen_by": 1.0},
    ],
)
def test_arguments_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        LeakageGate(**(ATTACK | changes))
