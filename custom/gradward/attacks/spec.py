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
from gradward.attacks.maps import MapOptions
from gradward.attacks.matching import MatchingOptions
from gradward.attacks.own import own_attack
from gradward.attacks.search import Search
from gradward.attacks.spans import SpanOptions


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
    "maps": MapOptions,
    "matching": MatchingOptions,
    "spans": SpanOptions,
}
ATTACK_NAMES = tuple(_FAMILIES)
LEARNING_ATTACKS = tuple(
    name for name, family in _FAMILIES.items() if hasattr(family, "learned_prior")
)


class AttackSpec:
    """One attack of a job, from JSON values.

    Args:
        name: one of ``ATTACK_NAMES``; or, in its place,
        path: ``package.module.Class`` of an attack of one's own, which goes by the name of its
            class (see :func:`gradward.attacks.own.own_attack` and ``docs/extending.md``).
        restarts: how often it starts, each with an equal share of its budget; the lowest loss wins.
        options: fields of the family's options.

    Attributes:
        changed: the options that are not as by default.

    Raises:
        ValueError, TypeError: an unknown name or option, or a bad value.
    """

    def __init__(
        self, name: str | None = None, restarts: int = 1, path: str | None = None, **options: Any
    ):
        if (name is None) == (path is None):
            raise ValueError(f"an attack has a name or a path, got {name!r} and {path!r}")
        if "config_type" in options:
            # With this word NVFlare takes a path for plain data, which it does not look at.
            raise ValueError("attacks have no options ['config_type']")
        if path is not None:
            family, name = own_attack(path), attack_name({"path": path})
            if name in _FAMILIES:
                raise ValueError(f"attack {path!r} needs another name than our own {name!r}")
        elif name in _FAMILIES:
            family = _FAMILIES[name]
        else:
            raise ValueError(
                f"unknown attack {name!r}; known are {', '.join(ATTACK_NAMES)}, or your own by "
                "its path, package.module.Class"
            )
        if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 1:
            raise ValueError(f"{name}.restarts must be an integer of at least 1, got {restarts!r}")
        _check_options(str(name), family, options)
        self.name = str(name)
        self.restarts = restarts
        self.attack: Attack = family(**options)
        known = dataclasses.fields(family)
        self.changed = {
            f.name: options[f.name] for f in known if options.get(f.name, f.default) != f.default
        }

    def takes(self, n_images: int, steps: int) -> bool:
        """Whether an update is within the attack's limits; one without takes any."""
        most_images = getattr(self.attack, "max_images", n_images)
        most_steps = getattr(self.attack, "max_steps", steps)
        return bool(n_images <= most_images and steps <= most_steps)

    @classmethod
    def check_all(cls, specs: Sequence[Mapping[str, Any]]) -> list[AttackSpec]:
        """Build the attacks of a job, each ``{"name": ..., option: value, ...}`` or with a path.

        Raises:
            ValueError, TypeError: as the constructor, no attack at all, or a name twice.
        """
        if not isinstance(specs, Sequence) or not all(isinstance(s, Mapping) for s in specs):
            raise ValueError(f"attacks must be a list of objects, got {specs!r}")
        built = [cls(**spec) for spec in specs]
        check_distinct(built)
        return built


def attack_name(spec: Mapping[str, Any]) -> str:
    """Return the name by which the results of an attack go; one of one's own has its class's."""
    return str(spec["path"]).rpartition(".")[2] if "path" in spec else str(spec["name"])


def check_distinct(specs: Sequence[AttackSpec]) -> None:
    """Make sure that there are attacks, each once: results go by the attack's name.

    Raises:
        ValueError: none, or a name twice.
    """
    names = [spec.name for spec in specs]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"attacks must be at least one, and each may be named once, got {names}")


def _check_options(name: str, family: type[Any], options: Mapping[str, Any]) -> None:
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
