"""One small network, one step on one picture, and the audit of that."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gradward.attacks import AttackSpec, Budget
from gradward.audit import AuditResult, audit_update
from gradward.data import ImageSet
from gradward.models import build_model
from gradward.training import State, TrainingSettings

from .attack_fixtures import patches, train

ONE = TrainingSettings(batch_size=1, lr=0.02)
TRUTH = patches()[200:201]
OTHER = patches()[140:141]
PUBLIC = ImageSet(patches()[:128], torch.arange(128) % 2)
FEW = Budget(evaluations=12)


def command_line(options: dict[str, Any], *flags: str) -> list[str]:
    """Arguments of ``gradward audit`` for such an update; a None leaves an option out."""
    common = {
        "channels": 3,
        "classes": 2,
        "lr": 0.02,
        "batch-size": 1,
        "evaluations": 10,
        "attack": "features",
        "out": "out",
    }
    listed = ["audit", "--image-size", "32", "32", *flags]
    for name, value in {**common, **options}.items():
        if value is not None:
            for single in value if isinstance(value, list) else [value]:
                listed += [f"--{name}", str(single)]
    return listed


def network(width: int = 8) -> nn.Module:
    return build_model(
        "bn_cnn", in_channels=3, num_classes=2, image_size=[32, 32], width=width, seed=0
    )


def trained_states() -> tuple[State, State]:
    """The global state, and the full state after one step on one picture of class 1."""
    before, update, _ = train(network(), TRUTH, torch.tensor([1]), ONE)
    return before, {name: before[name] + update[name] for name in before}


def audit(states: tuple[State, State], *attacks: str, **changes: Any) -> AuditResult:
    arguments: dict[str, Any] = {
        "image_shape": (3, 32, 32),
        "settings": ONE,
        "public": PUBLIC,
        "budget": FEW,
        "attacks": [AttackSpec(name) for name in attacks or ("features",)],
    }
    return audit_update(network(), *states, **{**arguments, **changes})
