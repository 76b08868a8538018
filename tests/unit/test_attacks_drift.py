"""Weights that moved between a client's steps are found on the way to where they ended."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from gradward.attacks import Budget, Observation
from gradward.attacks.batchnorm import BatchNormOptions, StatisticsLoss
from gradward.attacks.budget import Allowance, Meter
from gradward.attacks.case import AttackCase
from gradward.training import TrainingSettings, state_copy, state_difference

from .attack_fixtures import patches, public_mean, small_net

LABELS = torch.tensor([0, 1, 1, 0])


def client(rates: Sequence[float], batches: list[list[int]], straight: bool = False) -> AttackCase:
    """A real training by torch's own optimiser, each step with a learning rate of its own.

    A straight one goes by its first gradient all the way.
    """
    own = small_net().double()
    given = copy.deepcopy(own)
    optimizer = torch.optim.SGD(own.parameters())
    for step, (rate, batch) in enumerate(zip(rates, batches, strict=True)):
        logits = own(truth()[batch])
        if step == 0 or not straight:
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, LABELS[batch]).backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    before = state_copy(given)
    update = state_difference(state_copy(own), before)
    observation = Observation.from_update(given, before, update)
    prior = public_mean().double()
    return AttackCase(observation, TrainingSettings(batch_size=2), prior, 4, batches, None)


def truth() -> Tensor:
    return patches()[:4].double()


def allowance(evaluations: int = 100) -> Allowance:
    return Allowance(Meter(Budget(evaluations)))


def losses(case: AttackCase) -> tuple[float, float]:
    """Return the loss at the truth with frozen weights, and with drift fitted to it."""
    loss = StatisticsLoss(case, layers=1.0)
    frozen = float(loss(truth()))
    loss.fit_drift(truth(), allowance())
    return frozen, float(loss(truth()))


TWO, THREE = [[0, 1], [2, 3]], [[0, 1], [2, 3], [1, 2]]


@pytest.mark.parametrize(
    ("rates", "batches", "straight"),
    [([0.1, 0.0], TWO, False), ([0.1] * 3, THREE, True)],
    ids=["two, the first alone", "three, equally long"],
)
def test_weights_on_the_way_are_found(
    rates: Sequence[float], batches: list[list[int]], straight: bool
) -> None:
    frozen, fitted = losses(client(rates, batches, straight))
    assert frozen > 1e-4
    assert fitted <= 1e-8


def test_weights_that_moved_only_at_the_end_stay_frozen() -> None:
    frozen, fitted = losses(client([0.0, 0.1], TWO))
    assert frozen == pytest.approx(0, abs=1e-8)
    assert fitted == frozen


def test_steps_of_several_epochs_are_told_better_than_by_frozen_weights() -> None:
    # Small enough for the weights to go about straight.
    frozen, fitted = losses(client([0.01] * 6, TWO * 3))
    assert frozen > 1e-5
    assert fitted < frozen / 3


def test_a_batch_that_comes_again_is_processed_once() -> None:
    case = client([0.01] * 6, TWO * 3)
    loss = StatisticsLoss(case, layers=1.0)
    spent = allowance()
    loss.fit_drift(truth(), spent)
    seen: list[int] = []
    loss._model.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    loss(truth())
    assert sum(seen) == BatchNormOptions().images_per_evaluation(case) == 4


def test_guesses_count_and_end_with_the_budget() -> None:
    one = client([0.1], [[0, 1, 2, 3]])
    granted = allowance(3)
    StatisticsLoss(one, layers=1.0).fit_drift(truth(), granted)
    assert granted.meter.evaluations == 0
    two = StatisticsLoss(client([0.1, 0.1], TWO), layers=1.0)
    two.fit_drift(truth(), granted)
    assert granted.meter.evaluations == 3
