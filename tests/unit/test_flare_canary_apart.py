"""A training beside canaries is the same to the bit, and a planted fault would be noticed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.filter import Filter
from nvflare.apis.fl_context import FLContext

from gradward.defenses.ledger import PrivacyLedger
from gradward.flare.canary import CANARY_TASK
from gradward.flare.experiment import Experiment
from gradward.flare.guard import PerturbationGuard
from gradward.flare.perturber import Perturbation
from gradward.flare.perturber_store import LEDGER_FILE
from gradward.flare.update_filters import UpdateNoise, UpdatePruning
from gradward.randomness import own_randomness

from .canary_desk import (
    QUICK,
    WITH_DROPOUT,
    arrays_of,
    federation,
    fix_secrets,
    keep_secret,
    public_set,
)
from .flare_desk import accept_perturbers


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    accept_perturbers(monkeypatch)
    fix_secrets(monkeypatch)


CASES: dict[str, dict[str, Any]] = {
    "undefended": {},
    "dropout": WITH_DROPOUT,
    "dual pruning": {"filters": lambda: [UpdatePruning("dual")]},
    "update noise": {"filters": lambda: [UpdateNoise(0.1)]},
    "input noise": {"training": {"batch_size": 8, "lr": 0.02, "input_noise": 0.2}},
    "perturbed": {"perturbation": QUICK, "filters": lambda: [PerturbationGuard()]},
}


def observed(root: Path, case: str, checksum: str, orders: Sequence[tuple[str, int]]) -> object:
    """What somebody sees of a site's training: its updates, its files, its ledger."""
    values = dict(CASES[case])
    make: Callable[[], list[Filter]] = values.pop("filters", list)
    desk = federation(root, make(), **values)
    # As if the process had just started.
    torch.manual_seed(0)
    replies = {(task, n): arrays_of(desk.send(task, n, checksum)) for task, n in orders}
    private = root / "gradward"
    files = {
        str(file.relative_to(private))
        for file in private.rglob("*")
        if file.is_file() and "canary" not in file.relative_to(private).parts
    }
    ledger = private / LEDGER_FILE
    views = PrivacyLedger(ledger).total().views if ledger.is_file() else 0
    updates = {key: value for key, value in replies.items() if key[0] == "train"}
    return updates, files, views


TRAINING = [("train", 0), ("train", 1)]
WITH_CANARIES = [(CANARY_TASK, 0), ("train", 0), ("train", 1), (CANARY_TASK, 1)]


@pytest.mark.parametrize("case", CASES)
def test_a_training_beside_canaries_is_the_same_to_the_bit(tmp_path: Path, case: str) -> None:
    alone = observed(tmp_path / "alone", case, public_set().checksum, TRAINING)
    beside = observed(tmp_path / "beside", case, public_set().checksum, WITH_CANARIES)
    assert alone == beside


def shared_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("canary_training", "guard", "update_filter"):
        monkeypatch.setattr(f"gradward.flare.{module}.canary_twin", lambda site: site)


def shared_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gradward.flare.canary_training.own_randomness", lambda *rest: contextlib.nullcontext()
    )


def real_perturber(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_twin(
        self: Perturbation, twin: Any, job: Experiment, public: Any, pinned: Any, fl_ctx: FLContext
    ) -> Any:
        home = replace(twin, private=twin.private.parent)
        return self.open(home, job, pinned, fl_ctx, 0)

    monkeypatch.setattr(Perturbation, "open_twin", open_twin)


@pytest.mark.parametrize(
    ("fault", "case"),
    [
        (shared_generator, "dropout"),
        (shared_folders, "dual pruning"),
        (real_perturber, "perturbed"),
    ],
)
def test_a_planted_fault_would_be_noticed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
    case: str,
) -> None:
    """By the very comparison of the test above."""
    alone = observed(tmp_path / "alone", case, public_set().checksum, TRAINING)
    fault(monkeypatch)
    beside = observed(tmp_path / "beside", case, public_set().checksum, WITH_CANARIES)
    assert alone != beside


@pytest.mark.parametrize("case", ["dropout", "perturbed"])
def test_a_canary_is_the_same_before_and_after_the_training(tmp_path: Path, case: str) -> None:
    found = []
    for name, tasks in (("before", [CANARY_TASK]), ("after", ["train", CANARY_TASK])):
        values = {key: value for key, value in CASES[case].items() if key != "filters"}
        desk = federation(tmp_path / name, **values)
        keep_secret(tmp_path / name / "gradward" / "canary", bytes(32))
        replies = [desk.ask(task, 0, public_set().checksum)[0] for task in tasks]
        found.append(arrays_of(replies[-1]))
    assert found[0] == found[1]


def test_global_generators_are_given_back() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    undisturbed = [draw(), draw()]
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    first = draw()
    with contextlib.suppress(ZeroDivisionError), own_randomness(9, "cpu"):
        inside = draw()
        raise ZeroDivisionError
    assert [first, draw()] == undisturbed
    with own_randomness(9, "cpu"):
        assert draw() == inside
