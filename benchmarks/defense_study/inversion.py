"""Inversion of updates as it is published: it knows nothing of a defence."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from gradward.attacks import AttackSpec, Budget, Observation, ObservationError, run_portfolio
from gradward.metrics import match
from gradward.training import State, TrainingSettings

from .clients import Clients
from .defence import Defence, Part, one_step
from .federation import Effort, FederationRun
from .protocol import FIRST_SEED, Trial
from .scoring import Evidence, Scorer

BATCH_SIZES = (1, 4)


@dataclass(frozen=True)
class Round:
    """The one-step updates of one round under attack.

    Attributes:
        clients: at the round's global state.
        settings: of the victims' step.
        observations: one for each group of victims.
        updates: what left them.
        columns: ``(V, n)`` victims of the trial, a group a row.
        silent: ``(S, n)`` victims whose update is zero to the last bit, as that of a saturated
            network is: whoever looks for them guesses.
    """

    clients: Clients
    settings: TrainingSettings
    observations: list[Observation]
    updates: list[State]
    columns: Tensor
    silent: Tensor


def observe(
    trial: Trial,
    defence: Defence,
    model: nn.Module,
    state: State,
    number: int,
    size: int,
    n_victims: int,
) -> Round:
    """Let groups of victims take one step each and keep what a server sees of it."""
    groups = torch.arange(min(n_victims, len(trial.victims)) // size * size).view(-1, size)
    observations, updates, kept = [], [], torch.zeros(len(groups), dtype=torch.bool)
    for row, group in enumerate(groups):
        update = defence.one_step_update(
            model,
            state,
            Part(defence.sources[0], trial.victims[group].tolist()),
            trial.generator("victim", number, *group.tolist()),
        )
        with suppress(ObservationError):
            observations.append(Observation.from_update(model, state, update))
            updates.append(update)
            kept[row] = True
    settings = one_step(defence.settings, size)
    return Round(
        Clients(model, state), settings, observations, updates, groups[kept], groups[~kept]
    )


def attack_naively(
    trial: Trial,
    defence: Defence,
    model: nn.Module,
    run: FederationRun,
    scorer: Scorer,
    effort: Effort,
) -> dict[str, Evidence]:
    """Match gradients as the audit does, early, midway and late, in batches of 1 and 4.

    The attacker knows nothing of the defence, infers the labels, and polishes by the features of
    single images. All victims are attacked in the first round, where inversion has it easiest;
    later rounds, on the first seed alone, show a few.
    """
    prior = trial.known.images.mean(dim=0)
    rounds = run.states if trial.seed == FIRST_SEED else [min(run.states)]
    found = {}
    for number, size in product(rounds, BATCH_SIZES):
        n_victims = effort.victims if number == min(run.states) else effort.inverted
        seen = observe(trial, defence, model, run.states[number], number, size, n_victims)
        pictures = [
            run_attack(item, seen, trial, prior, AttackSpec("matching"), effort)
            for item in seen.observations
        ]
        pictures += [prior.expand(size, *prior.shape)] * len(seen.silent)
        columns = torch.cat([seen.columns, seen.silent])
        found[f"batch {size} round {number}"] = _score_groups(
            trial, f"naive, batch {size}, round {number}", pictures, columns, scorer
        )
    return found


def run_attack(
    observation: Observation,
    seen: Round,
    trial: Trial,
    prior: Tensor,
    spec: AttackSpec,
    effort: Effort,
    labels: Tensor | None = None,
) -> Tensor:
    """Run one attack of the audit; where it does not apply, its prior is the best guess left."""
    size = seen.columns.shape[1]
    (result,) = run_portfolio(
        observation,
        prior=prior,
        n_images=size,
        settings=seen.settings,
        attacks=[spec],
        budget=Budget(evaluations=effort.evaluations),
        seed=trial.seed,
        labels=labels,
    )
    return prior.expand(size, *prior.shape) if result.images is None else result.images


def _score_groups(
    trial: Trial, attack: str, pictures: Sequence[Tensor], columns: Tensor, scorer: Scorer
) -> Evidence:
    """Score the pictures of each group after matching them to its victims."""
    images = trial.victim_images.images
    ordered = []
    for group, row in zip(pictures, columns, strict=True):
        rows, places = match(group, images[row])
        ordered.append(group[rows[places.argsort()]])
    return scorer.score(attack, torch.cat(ordered), columns.flatten())
