"""The tables of options are those of the code: every option, no other, and its default."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from gradward.attacks import Budget
from gradward.attacks.spec import _FAMILIES
from gradward.defenses.perturbation_settings import PerturbationSettings
from gradward.flare.gate import LeakageGate
from gradward.flare.guard import PerturbationGuard
from gradward.flare.policies import (
    CertifiedPolicy,
    GatePolicy,
    PerturbationPolicy,
    ScoringPolicy,
)
from gradward.flare.update_filters import UpdateNoise, UpdatePruning, WithholdBuffers
from gradward.metrics.reidentification import MINIMUM_GALLERY
from gradward.metrics.similarity import PSNR_CAP, SIGMA, WINDOW
from gradward.training_settings import BidoSettings, DpSgdSettings, TrainingSettings

from .docs_pages import read

REFERENCE = "docs/defense-reference.md"
TABLES: list[tuple[str, str, Callable[..., Any]]] = [
    *(("docs/attacks.md", f"### `{name}`", family) for name, family in _FAMILIES.items()),
    ("docs/attacks.md", "### Budget", Budget),
    (REFERENCE, "## Perturbation", PerturbationSettings),
    (REFERENCE, "## Guard", PerturbationGuard),
    (REFERENCE, "## Gate", LeakageGate),
    (REFERENCE, "## Update noise", UpdateNoise),
    (REFERENCE, "## Update pruning", UpdatePruning),
    (REFERENCE, "## Withheld buffers", WithholdBuffers),
    (REFERENCE, "## DP-SGD", DpSgdSettings),
    (REFERENCE, "## BiDO", BidoSettings),
    (REFERENCE, "`perturbation`:", PerturbationPolicy),
    (REFERENCE, "`scoring`:", ScoringPolicy),
    (REFERENCE, "`gate`:", GatePolicy),
    (REFERENCE, "`certified`:", CertifiedPolicy),
]


def table(page: str, heading: str) -> dict[str, str]:
    """Return option to default of the first table behind a heading."""
    behind = read(page).split(f"\n{heading}\n", 1)[1]
    rows = re.split(
        r"\n(?!\|)", behind[behind.index("\n| Option | Default | |\n") + 1 :], maxsplit=1
    )
    found = re.findall(r"^\| `(\w+)` \| (.*?) \|", rows[0], re.MULTILINE)
    return {name: default.strip("`") for name, default in found}


def defaults(kind: Callable[..., Any]) -> dict[str, str]:
    """Return option to default, as JSON has it, of a class' constructor."""
    parameters = inspect.signature(kind).parameters
    return {name: _json(parameter.default) for name, parameter in parameters.items()}


def _json(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    return json.dumps(list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(("page", "heading", "kind"), TABLES, ids=lambda value: str(value)[:30])
def test_a_table_has_the_options_and_defaults(
    page: str, heading: str, kind: Callable[..., Any]
) -> None:
    assert table(page, heading) == defaults(kind)


def test_defences_in_the_training_have_their_defaults() -> None:
    told, known = table(REFERENCE, "## In the training"), defaults(TrainingSettings)
    assert told == {name: known[name] for name in told}
    training_alone = {
        "batch_size",
        "lr",
        "epochs",
        "steps",
        "optimizer",
        "loss",
        "momentum",
        "weight_decay",
    }
    assert set(told) == {field.name for field in dataclasses.fields(TrainingSettings)} - (
        training_alone
    )


def test_the_metrics_constants_are_those_of_the_code() -> None:
    page = read("docs/metrics.md")
    assert f"({WINDOW} pixels, sigma {SIGMA})" in page
    assert f"capped at {PSNR_CAP:.0f}" in page and f"max(mse, {10 ** (-PSNR_CAP / 10):.0e}" in page
    assert f"at least {MINIMUM_GALLERY}" in page
