"""The attacks by name, and one of them as a job asks for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from gradward.attacks.analytic import AnalyticOptions
from gradward.attacks.batchnorm import BatchNormOptions
from gradward.attacks.budget import Allowance
from gradward.attacks.case import AttackCase
from gradward.attacks.features import FeatureOptions
from gradward.attacks.knowledge import Knowledge
from gradward.attacks.matching import MatchingOptions
from gradward.attacks.search import Search


class Attack(Protocol):
    """What every attack family offers."""

    def knowledge(self, case: AttackCase) -> Knowledge:
        """State what the attack builds on."""

    def images_per_evaluation(self, case: AttackCase) -> int:
        """Return how many images one evaluation processes."""

    def run(self, case: AttackCase, allowance: Allowance, generator: torch.Generator) -> Search:
        """Search within the allowance."""


_FAMILIES: dict[str, type[Any]] = {
    "analytic": AnalyticOptions,
    "batchnorm": BatchNormOptions,
    "features": FeatureOptions,
    "matching": MatchingOptions,
}
ATTACK_NAMES = tuple(_FAMILIES)
LEARNING_ATTACKS = tuple(
    name for name, family in _FAMILIES.items() if hasattr(family, "learned_prior")
)


class AttackSpec:
    """One attack of a job, from JSON values.

    Args:
        name: one of ``ATTACK_NAMES``.
        restarts: how often it starts, each with an equal share of its budget; the lowest loss wins.
        options: fields of the family's options.

    Raises:
        ValueError, TypeError: an unknown name or option, or a bad value.
    """

    def __init__(self, name: str, restarts: int = 1, **options: Any):
        if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 1:
            raise ValueError(f"{name}.restarts must be an integer of at least 1, got {restarts!r}")
        if name not in _FAMILIES:
            raise ValueError(f"unknown attack {name!r}; known are {', '.join(ATTACK_NAMES)}")
        family = _FAMILIES[name]
        known = {field.name: field.default for field in dataclasses.fields(family)}
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"attack {name!r} has no options {unknown}; known are {sorted(known)}")
        for key, value in options.items():
            if isinstance(known[key], str):
                continue
            whole = isinstance(known[key], int)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise TypeError(f"{name}.{key} must be a number like {known[key]}, got {value!r}")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}.{key} must be finite and not negative, got {value!r}")
        self.name = name
        self.restarts = restarts
        self.attack: Attack = family(**options)

    @classmethod
    def check_all(cls, specs: Sequence[Mapping[str, Any]]) -> list[AttackSpec]:
        """Build the attacks of a job, each ``{"name": ..., option: value, ...}``.

        Raises:
            ValueError, TypeError: as the constructor, no attack at all, or a name twice.
        """
        if not isinstance(specs, Sequence) or not all(isinstance(s, Mapping) for s in specs):
            raise ValueError(f"attacks must be a list of objects, got {specs!r}")
        built = [cls(**spec) for spec in specs]
        check_distinct(built)
        return built


def check_distinct(specs: Sequence[AttackSpec]) -> None:
    """Make sure that there are attacks, each once: results go by the attack's name.

    Raises:
        ValueError: none, or a name twice.
    """
    names = [spec.name for spec in specs]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"attacks must be at least one, and each may be named once, got {names}")
