"""Every arm of the study with its range of settings and the attackers that it has to face."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import baselines, certified, perturbers
from .defence import Case, Defence
from .membership import Refit, refit_perturber

ORACLE, NAIVE, ADAPTED, UPDATES = "oracle", "naive", "adapted", "updates"
EPSILONS = ("16", "8", "4", "2", "1")
RATES = ("4", "1")


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


FRONTIER = {
    "none": _arm(baselines.undefended, ("batch",), ORACLE, NAIVE, ADAPTED, UPDATES),
    "public-only": _arm(baselines.public_only, ("-",)),
    "input-noise": _arm(baselines.input_noise, (".1", ".2", ".4", ".8"), ORACLE),
    "erasing": _arm(baselines.random_erasing, ("1",), ORACLE),
    "update-noise": _arm(baselines.update_noise, ("2", "8"), ADAPTED, UPDATES),
    "pruning": _arm(baselines.pruning, ("99",), ADAPTED, UPDATES),
    "dual-pruning": _arm(baselines.dual_pruning, (".05,.75",), UPDATES),
    "no-buffers": _arm(baselines.withheld_buffers, ("-",), UPDATES),
    "group-norm": _arm(baselines.undefended, ("group",), UPDATES),
    "dp-sgd": _arm(baselines.dp_sgd, ("sigma=.03", "sigma=.3"), NAIVE, UPDATES),
    "bido": _arm(baselines.bido, (".05,.5", ".2,2"), NAIVE, UPDATES),
    "class": _arm(perturbers.perturbed("class"), ("-",), ORACLE, NAIVE),
    "uniform": _arm(perturbers.perturbed("uniform"), RATES, ORACLE),
    "learned": _arm(perturbers.perturbed("learned"), RATES, ORACLE, NAIVE),
    "class-hiding": _arm(perturbers.perturbed("class-hiding"), ("64", "16", "4"), ORACLE, NAIVE),
}
# Beside each other at the same epsilon; attacks on updates have been seen on the frontier.
CERTIFIED = {
    "none": _arm(baselines.undefended, ("batch",)),
    "public-only": _arm(certified.public_only, ("-",)),
    "public-draws": _arm(certified.public_draws, ("-",)),
    "dp-sgd": _arm(certified.tuned_dp_sgd, tuple(f"eps={value}" for value in EPSILONS)),
    "dp-class": _arm(certified.dp_class, EPSILONS, ORACLE),
}
# Refits of what is fitted on a site's images, to tell who was among them.
MEMBERSHIP: dict[str, tuple[Refit, tuple[str, ...]]] = {
    "membership of learned": (refit_perturber("learned"), ("4",)),
    "membership of class": (refit_perturber("class"), ("-",)),
    "membership of dp-class": (certified.refit_release, ("8",)),
}


def settings_of(arms: Mapping[str, Arm]) -> dict[str, tuple[str, ...]]:
    """Return each arm's settings, those of its membership audit last."""
    own = {name: arm.settings for name, arm in arms.items()}
    audits = {name: settings for name, (_, settings) in MEMBERSHIP.items()}
    return own | {name: audits[name] for arm in own if (name := f"membership of {arm}") in audits}


def middle(settings: Sequence[str]) -> str:
    """Return the setting in the middle of a range, which a quick run takes."""
    return settings[len(settings) // 2]
