"""Which attacks ``gradward audit`` runs, and how each is set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from gradward.attacks import ATTACK_NAMES, AttackSpec
from gradward.attacks.spec import LEARNING_ATTACKS
from gradward.audit import AuditError


class AttackName(click.Choice[str]):
    """The name of an attack, or the path of one's own."""

    def __init__(self) -> None:
        super().__init__(ATTACK_NAMES)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Leave a path as it is, for who builds the attack says what is wrong with it."""
        return value if "." in value else super().convert(value, param, ctx)


def attacks_of(given: Mapping[str, Any]) -> list[AttackSpec]:
    """Return the attacks, each with its own options before those that all of them share.

    Raises:
        AuditError: options of an attack that is not there or does not run, or that are no options.
        ValueError, TypeError: as :class:`AttackSpec`.
    """
    names = given["attack"] or ATTACK_NAMES
    options: Mapping[str, Any] = given["attack_options"]
    for name, own in options.items():
        if name not in names:
            raise AuditError(
                f"--attack-options names {name!r}, which does not run; the attacks that run are "
                f"{', '.join(names)}"
            )
        if not isinstance(own, Mapping) or own.keys() & {"name", "path"}:
            raise AuditError(
                f"--attack-options must give {name!r} its options by their names, like "
                f'{{"matching": {{"start": "random"}}}}, got {own!r}'
            )
    return [_spec(name, given, options.get(name, {})) for name in names]


def _spec(name: str, given: Mapping[str, Any], options: Mapping[str, Any]) -> AttackSpec:
    shared = {"restarts": given["restarts"]}
    if name in LEARNING_ATTACKS:
        shared["learned_prior"] = given["learned_prior"]
    return AttackSpec(**{"path" if "." in name else "name": name, **shared, **options})
