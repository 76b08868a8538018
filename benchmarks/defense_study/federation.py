"""Federated averaging in plain torch: what a defence costs, and where its updates start from."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradward.metrics import evaluate
from gradward.training import (
    BatchSource,
    State,
    TrainingSettings,
    state_copy,
    state_difference,
    train_locally,
)

from .protocol import SETS, Trial


@dataclass(frozen=True)
class Effort:
    """How much work a run of the study does.

    Attributes:
        rounds: of the federation.
        start_epochs: of training on the public images, before the federation.
        victims: attacked images of one seed.
        inverted: of them, those attacked by naive inversion after the first round.
        adapted: of them, those attacked by inversion that knows the defence.
        evaluations: of one inversion.
        network_steps: of training an attacker's network.
        shadows: releases that a membership attack is fitted on.
        fit: settings of a perturber's fit that differ from its defaults.
    """

    rounds: int = 6
    start_epochs: int = 60
    victims: int = 100
    inverted: int = 8
    adapted: int = 8
    evaluations: int = 50
    network_steps: int = 500
    shadows: int = 8
    fit: Mapping[str, Any] = field(default_factory=dict)


QUICK = Effort(
    rounds=3,
    start_epochs=6,
    victims=12,
    inverted=4,
    adapted=4,
    evaluations=12,
    network_steps=40,
    shadows=3,
    fit={"autoencoder_steps": 40, "gate_steps": 10},
)
FULL = Effort()


@dataclass
class FederationRun:
    """What a federation came to.

    Attributes:
        balanced_accuracy: on clean test images, at the start and after each round.
        states: global states at the start of an early, a middle and a late round, by round.
    """

    balanced_accuracy: list[float] = field(default_factory=list)
    states: dict[int, State] = field(default_factory=dict)


def attacked_rounds(rounds: int) -> list[int]:
    """Return an early, a middle and a late round."""
    return sorted({0, rounds // 2, rounds - 1})


def site_settings(trial: Trial) -> TrainingSettings:
    """Return what every site trains with in a round: one pass over a site's number of images."""
    batch_size = 25
    return TrainingSettings(
        batch_size=batch_size,
        lr=0.02,
        momentum=0.9,
        steps=math.ceil(SETS[trial.name].site / batch_size),
    )


def local_update(
    model: nn.Module,
    state: State,
    source: BatchSource,
    settings: TrainingSettings,
    generator: torch.Generator,
) -> State:
    """Return after - before of one round of local training from ``state``."""
    own = copy.deepcopy(model)
    own.load_state_dict(state)
    # A study may take noise and order from one generator; a site may not.
    train_locally(own, source, settings, generator, secret=generator)
    return state_difference(state_copy(own), state)


def average(updates: list[State]) -> State:
    """Return the plain mean of the updates, counters rounded; the sites are of one size."""
    mean = {}
    for name, value in updates[0].items():
        total = torch.stack([update[name].double() for update in updates]).mean(dim=0)
        mean[name] = (total if value.is_floating_point() else total.round()).to(value.dtype)
    return mean


def federate(
    trial: Trial,
    model: nn.Module,
    start: State,
    site_update: Callable[[int, State, int], State],
    rounds: int,
    after: Callable[[nn.Module], None] = lambda model: None,
) -> FederationRun:
    """Run the rounds and measure the global model before and after them.

    Args:
        trial: gives the number of sites and the test images.
        model: gives the architecture.
        start: the first global state.
        site_update: maps site, global state and round to the update that the site sends.
        rounds: how many.
        after: what the server does with the averaged model before it serves it.
    """
    own = copy.deepcopy(model)
    state = {name: value.clone() for name, value in start.items()}
    own.load_state_dict(state)
    run = FederationRun([_utility(own, trial)])
    for number in range(rounds):
        if number in attacked_rounds(rounds):
            run.states[number] = {name: value.clone() for name, value in state.items()}
        updates = [site_update(site, state, number) for site in range(len(trial.sites))]
        mean = average(updates)
        own.load_state_dict(
            {name: value + mean[name] if name in mean else value for name, value in state.items()}
        )
        after(own)
        state = state_copy(own)
        run.balanced_accuracy.append(_utility(own, trial))
    return run


def _utility(model: nn.Module, trial: Trial) -> float:
    return evaluate(model, trial.test.images, trial.test.labels, 250)["balanced_accuracy"]
