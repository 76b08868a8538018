"""What a curious server can do with one update."""

from gradward.attacks.budget import Budget
from gradward.attacks.control import control_update
from gradward.attacks.knowledge import Knowledge
from gradward.attacks.observation import AttackRefused, Observation, ObservationError
from gradward.attacks.portfolio import (
    AttackResult,
    Restart,
    images_in_update,
    run_portfolio,
)
from gradward.attacks.spec import ATTACK_NAMES, Attack, AttackSpec

__all__ = [
    "ATTACK_NAMES",
    "Attack",
    "AttackRefused",
    "AttackResult",
    "AttackSpec",
    "Budget",
    "Knowledge",
    "Observation",
    "ObservationError",
    "Restart",
    "control_update",
    "images_in_update",
    "run_portfolio",
]
