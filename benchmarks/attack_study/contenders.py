"""Who attacks what, with which options: one table a case, to be tuned here."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gradward.attacks import ATTACK_NAMES, AttackSpec, Budget, run_portfolio

from .instances import Instance
from .pictures import load_pictures

Tool = Literal["gradward", "breaching", "leakpro"]


@dataclass(frozen=True)
class Contender:
    """One attack with its options.

    Attributes:
        name: for tables.
        tool: whose it is.
        attack: GradWard's name of an attack, breaching's or LeakPro's of a configuration.
        options: GradWard's options; overrides of the configuration of others.
        control: attack the wrong update instead and score against the victim.
        evaluations: bound on GradWard's loops beside the CPU time, or None.
    """

    name: str
    tool: Tool
    attack: str
    options: dict[str, Any] = field(default_factory=dict)
    control: bool = False
    evaluations: int | None = None

    @property
    def known(self) -> bool:
        """Whether this version of GradWard has the attack; others answer for themselves."""
        return self.tool != "gradward" or self.attack in ATTACK_NAMES


@dataclass(frozen=True)
class Outcome:
    """What a contender came to.

    Attributes:
        status: ``"ok"``, ``"refused"`` where it does not apply, or ``"failed"``.
        reason: of any other status than ok.
        images: ``(n, 1, H, W)`` of its lowest loss.
        loss: the lowest.
        evaluations: of loss and gradient, or iterations where a peer counts those.
        cpu_seconds: of the process, one thread.
        seconds: wall clock.
        labels: that it used, if it tells.
    """

    status: str
    reason: str = ""
    images: Tensor | None = None
    loss: float | None = None
    evaluations: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    labels: Tensor | None = None


def _ours(attack: str, name: str = "", control: bool = False, **options: Any) -> Contender:
    label = f"GradWard {name or attack}" + (", control" if control else "")
    return Contender(label, "gradward", attack, options, control)


def _breaching(attack: str, name: str = "", **overrides: Any) -> Contender:
    return Contender(f"breaching {name or attack}", "breaching", attack, overrides)


def _leakpro(attack: str, **overrides: Any) -> Contender:
    return Contender(f"LeakPro {attack}", "leakpro", attack, overrides)


_INVERTING = _breaching("invertinggradients")
_SEE_THROUGH = _breaching("seethroughgradients")
# The attack of the DLG paper with the labels given, as everybody has them here.
_DEEP = _breaching("deepleakage", "deepleakage, labels given", attack_type="optimization")
_LEAKPRO_IG = _leakpro("inverting_gradients")
_LEAKPRO_RUNNING = _leakpro("gia_running")

_LENET_OURS = _ours("matching", start="random")
_LENET = (
    replace(_LENET_OURS, name="GradWard matching, 500 evaluations", evaluations=500),
    _LENET_OURS,
    _DEEP,
    _INVERTING,
    _LEAKPRO_IG,
)
_BN_FC = (
    _ours("matching", start="random"),
    _INVERTING,
    _SEE_THROUGH,
    _LEAKPRO_IG,
    _LEAKPRO_RUNNING,
)
_BN_FC_STEPS = (
    _ours("matching", start="random", tv_weight=0.2, bn_weight=1.0, polish=0.0),
    _INVERTING,
    _LEAKPRO_IG,
    _LEAKPRO_RUNNING,
)
_RESNET = (
    _ours("batchnorm"),
    _ours("features"),
    _ours("maps"),
    _ours("matching"),
    _ours("batchnorm", control=True),
    _ours("maps", control=True),
    _INVERTING,
    _SEE_THROUGH,
    _LEAKPRO_IG,
    _LEAKPRO_RUNNING,
)
_LEARNED_FEATURES, _LEARNED_BATCHNORM = "features, learned prior", "batchnorm, learned prior"
_LEARNED_MAPS = "maps, learned prior"
_RESNET_224 = (
    _ours("maps", _LEARNED_MAPS, learned_prior=0.3),
    *_RESNET,
    _ours("maps", _LEARNED_MAPS, control=True, learned_prior=0.3),
)
_RESNET_WITHHELD = (
    _ours("maps"),
    _ours("features"),
    _ours("features", _LEARNED_FEATURES, learned_prior=0.3),
    _ours("matching", "matching, no polish", polish=0.0),
    _ours("maps", control=True),
    _ours("features", control=True),
    _ours("features", _LEARNED_FEATURES, control=True, learned_prior=0.3),
    _INVERTING,
    _LEAKPRO_IG,
)
_LEARNED_SPANS = "spans, learned prior"
_RESNET_8 = (
    _ours("spans", _LEARNED_SPANS, learned_prior=0.3),
    _ours("spans", _LEARNED_SPANS, control=True, learned_prior=0.3),
    _ours("batchnorm"),
    _ours("batchnorm", _LEARNED_BATCHNORM, learned_prior=0.1),
    _ours("matching"),
    _ours("batchnorm", control=True),
    _ours("batchnorm", _LEARNED_BATCHNORM, control=True, learned_prior=0.1),
    _ours("matching", control=True),
    _INVERTING,
    _LEAKPRO_RUNNING,
)
_ANALYTIC = (_ours("analytic"), _breaching("analytic"))

# The first of a case is the one that targets are for.
CONTENDERS: dict[str, tuple[Contender, ...]] = {
    "lenet_1": _LENET,
    # Only the target of one image names a number of evaluations.
    "lenet_4": (_LENET_OURS, *(contender for contender in _LENET if contender != _LENET_OURS)),
    "bn_fc_1": _BN_FC,
    "bn_fc_4": _BN_FC,
    "bn_fc_8": _BN_FC_STEPS,
    "bn_fc_8_inferred": _BN_FC_STEPS,
    "resnet18_64": _RESNET,
    "resnet18_64_withheld": _RESNET_WITHHELD,
    "resnet18_64_8": _RESNET_8,
    "resnet18_224": _RESNET_224,
    "analytic_1": _ANALYTIC,
    "analytic_4": _ANALYTIC,
}


def run_ours(contender: Contender, instance: Instance, cpu_seconds: float) -> Outcome:
    """Run an attack of GradWard's for ``cpu_seconds``, on the update or on its control."""
    torch.set_num_threads(1)
    case = instance.case
    update = instance.control if contender.control else instance.update
    begun, began = time.process_time(), time.monotonic()
    (result,) = run_portfolio(
        update.observation,
        prior=instance.prior,
        n_images=case.n_images,
        settings=case.settings,
        attacks=[AttackSpec(contender.attack, **contender.options)],
        budget=Budget(cpu_seconds=cpu_seconds, evaluations=contender.evaluations),
        seed=instance.seed,
        labels=update.labels if case.labels == "given" else None,
        public=load_pictures(case.side).public,
    )
    return Outcome(
        "refused" if result.status == "skipped" else result.status,
        result.reason,
        result.images,
        result.loss,
        result.evaluations,
        time.process_time() - begun,
        time.monotonic() - began,
        result.labels,
    )
