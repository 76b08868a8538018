"""Every arm of the study with its range of settings and the attackers that it has to face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import baselines, certified, perturbers
from .defence import Case, Defence
from .membership import Refit, refit_perturber

ORACLE, NAIVE, ADAPTED, UPDATES = "oracle", "naive", "adapted", "updates"
EPSILONS = ("16", "8", "4", "2", "1")
RATES = ("10", "5", "2", "1")


@dataclass(frozen=True)
class Arm:
    """A defence over its own range.

    Attributes:
        build: makes the defence of one setting.
        settings: from the weakest to the strongest.
        attackers: which ones it faces: ``oracle`` holds the exact view, ``naive`` inverts updates
            and knows no defence, ``adapted`` does, ``updates`` learns from updates and links
            them.
    """

    build: Callable[[Case], Defence]
    settings: tuple[str, ...]
    attackers: frozenset[str]


def _arm(build: Callable[[Case], Defence], settings: tuple[str, ...], *attackers: str) -> Arm:
    return Arm(build, settings, frozenset(attackers))


ARMS = {
    "none": _arm(baselines.undefended, ("batch",), ORACLE, NAIVE, ADAPTED, UPDATES),
    "public-only": _arm(baselines.public_only, ("-",)),
    "input-noise": _arm(baselines.input_noise, (".1", ".2", ".4", ".8"), ORACLE),
    "erasing": _arm(baselines.random_erasing, (".5", "1"), ORACLE),
    "update-noise": _arm(baselines.update_noise, (".1", ".5", "1", "2"), ADAPTED, UPDATES),
    "pruning": _arm(baselines.pruning, ("50", "90", "99"), ADAPTED, UPDATES),
    "dual-pruning": _arm(baselines.dual_pruning, (".05,.75", ".1,.85"), ADAPTED, UPDATES),
    "no-buffers": _arm(baselines.withheld_buffers, ("-",), ADAPTED, UPDATES),
    "group-norm": _arm(baselines.undefended, ("group",), ADAPTED, UPDATES),
    "dp-sgd": _arm(
        baselines.dp_sgd,
        ("sigma=.03", "sigma=.1", "sigma=.3", *(f"eps={value}" for value in EPSILONS)),
        NAIVE,
        ADAPTED,
        UPDATES,
    ),
    "bido": _arm(baselines.bido, (".01,.1", ".05,.5", ".2,2"), NAIVE, ADAPTED, UPDATES),
    "uniform": _arm(perturbers.perturbed("uniform"), RATES, ORACLE),
    "learned": _arm(perturbers.perturbed("learned"), RATES, ORACLE, NAIVE),
    "class": _arm(perturbers.perturbed("class"), ("-",), ORACLE),
    "dp-class": _arm(certified.dp_class, EPSILONS, ORACLE),
    "class-hiding": _arm(perturbers.perturbed("class-hiding"), RATES, ORACLE, NAIVE),
}
# Refits of what is fitted on a site's images, to tell who was among them.
MEMBERSHIP_ARMS: dict[str, tuple[Refit, tuple[str, ...]]] = {
    "membership of learned": (refit_perturber("learned"), ("5",)),
    "membership of class": (refit_perturber("class"), ("-",)),
    "membership of dp-class": (certified.refit_release, ("8",)),
}
# A quick run takes each arm once, at a setting in the middle of its range.
SETTINGS = {name: arm.settings for name, arm in ARMS.items()} | {
    name: settings for name, (_, settings) in MEMBERSHIP_ARMS.items()
}
QUICK_SETTINGS = {name: (own[len(own) // 2],) for name, own in SETTINGS.items()}
# The larger sites are there for the certified curve alone.
CERTIFIED_ARMS = ("none", "public-only", "dp-sgd", "class", "dp-class")
