"""Weights & Biases gets every value, in whatever order they come; the tool itself is stood in for.

``tests/integration/test_tracking.py`` has the real one, where it is installed.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from nvflare.apis.event_type import EventType

from gradward.flare.weights_and_biases import LiveWandBReceiver

from .test_flare_tensorboard import Board


class FakeRun:
    """Takes values as W&B does: each call is a step of its own."""

    def __init__(self, fault: Exception | None, **arguments: Any) -> None:
        self.arguments, self.fault = arguments, fault
        self.logged: list[dict[str, float]] = []
        self.axes: list[tuple[str, str]] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def log(self, values: dict[str, float]) -> None:
        if self.fault:
            raise self.fault
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    made: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        made.append(FakeRun(None, **arguments))
        return made[-1]

    module = ModuleType("wandb")
    vars(module)["init"] = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return made


def test_a_late_score_of_an_earlier_round_is_not_lost(tmp_path: Path, runs: list[FakeRun]) -> None:
    board = Board(tmp_path, LiveWandBReceiver(project="ward", mode="online"))
    board.fire(EventType.START_RUN)
    board.configure(job="quickstart")
    board.stream("train/loss", 0.5, 0, "site-1")
    board.stream("train/loss", 0.25, 2, "site-1")
    board.stream("leakage/matching/recovered", 0.75, 0, "site-1")
    board.stream("train/loss", 0.125, 0, "site-2")
    board.stream("audit/open", 3.0, 1)
    board.fire(EventType.END_RUN)
    by_name = {run.arguments["name"]: run for run in runs}
    assert set(by_name) == {"site-1", "site-2", "server"}
    assert by_name["site-1"].logged == [
        {"train/loss": 0.5, "round": 0},
        {"train/loss": 0.25, "round": 2},
        {"leakage/matching/recovered": 0.75, "round": 0},
    ]
    assert by_name["server"].logged == [{"audit/open": 3.0, "round": 1}]
    for run in runs:
        assert run.axes == [("*", "round")] and run.finished
        assert run.arguments["project"] == "ward" and run.arguments["mode"] == "online"
        assert run.arguments["group"] == "quickstart"
        assert run.arguments["config"]["job"] == "quickstart"
        assert Path(run.arguments["dir"]) == tmp_path / "job-1"


def test_without_a_configuration_the_values_are_there(tmp_path: Path, runs: list[FakeRun]) -> None:
    board = Board(tmp_path, LiveWandBReceiver())
    board.fire(EventType.START_RUN)
    board.stream("train/loss", 0.5, 0, "site-1")
    assert runs[0].logged == [{"train/loss": 0.5, "round": 0}]
    assert runs[0].arguments["group"] == "job-1" and runs[0].arguments["mode"] == "offline"


def test_a_lost_connection_is_told_once(
    tmp_path: Path, runs: list[FakeRun], caplog: pytest.LogCaptureFixture
) -> None:
    board = Board(tmp_path, LiveWandBReceiver())
    board.fire(EventType.START_RUN)
    board.stream("train/loss", 0.5, 0, "site-1")
    runs[0].fault = ConnectionError("no route to host")
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            board.stream("train/loss", 0.5, number, "site-1")
    told = [record.message for record in caplog.records if "Weights & Biases" in record.message]
    assert len(told) == 1 and "no route to host" in told[0] and "scalars.jsonl" in told[0]
    board.fire(EventType.END_RUN)
    assert runs[0].finished


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"mode": "on"}, ValueError, "'on'"),
        ({"project": ""}, TypeError, "project"),
        ({"group": 3}, TypeError, "group"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], words: str, runs: list[FakeRun]
) -> None:
    with pytest.raises(error, match=words):
        LiveWandBReceiver(**arguments)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        LiveWandBReceiver()
