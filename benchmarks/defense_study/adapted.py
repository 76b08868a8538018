"""Inversion of updates by an attacker who knows what the defence does to them.

Matching attacks all victims of a round at once, which changes nothing for any of them:
their losses add up and signed Adam moves every pixel by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from gradward.attacks import AttackSpec, Observation
from gradward.attacks.budget import Allowance, Budget, Meter
from gradward.attacks.objectives import (
    RELATIVE_VARIANCE_FLOOR,
    total_variation,
)
from gradward.attacks.search import descend_signed_adam
from gradward.training import State

from .defence import Defence
from .federation import Effort, FederationRun
from .inversion import Round, observe, run_attack
from .protocol import Trial
from .scoring import Evidence, Scorer

# A pruned update is full of zeros; the dead units of a network make few.
_PRUNED = 0.02
# As `MatchingOptions` has them.
_TV, _BN, _LR = 0.1, 0.3, 0.1
_FEATURE_TV = 0.01
_TINY = 1e-20

Statistics = Sequence[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor], Tensor]


def attack_adapted(
    trial: Trial,
    defence: Defence,
    model: nn.Module,
    run: FederationRun,
    scorer: Scorer,
    effort: Effort,
) -> dict[str, Evidence]:
    """Match one-image updates knowing the label, the mask of a pruned update, and the noise.

    In matching, each tensor is weighted by how much of it is not noise, ``1 - n sigma^2 / |u|^2``
    as a Wiener filter has it for n entries under noise of deviation sigma. There and in the
    inversion of features, smoothness counts the more, the more of the update is noise. An early
    and a late round are attacked.
    """
    guesses = trial.class_means[trial.victim_images.labels]
    found = {}
    for number in {min(run.states): None, max(run.states): None}:
        state = run.states[number]
        seen = observe(trial, defence, model, state, number, 1, effort.adapted)
        if not seen.observations:
            continue
        rows = seen.columns[:, 0]
        labels = trial.victim_images.labels[rows][:, None]
        factors, noise = _factors(seen, defence.noise_std)
        loss = _matching(seen, labels, factors, noise)
        inverted = [
            run_attack(
                item,
                seen,
                trial,
                guess,
                AttackSpec("features", tv_weight=_FEATURE_TV * (1 + 10 * min(share, 1.0))),
                effort,
                label,
            )
            for item, guess, label, share in zip(
                seen.observations, guesses[rows], labels, noise.tolist(), strict=True
            )
        ]
        pictures = {
            "matching": _descend(loss, guesses[rows][:, None], effort.evaluations)[:, 0],
            "features": torch.cat(inverted),
        }
        silent = seen.silent[:, 0]
        for name, images in pictures.items():
            found[f"{name} round {number}"] = scorer.score(
                f"adapted {name}, round {number}",
                torch.cat([images, guesses[silent]]),
                torch.cat([rows, silent]),
            )
    return found


def _descend(loss: Loss, start: Tensor, evaluations: int) -> Tensor:
    allowance = Allowance(Meter(Budget(evaluations)))
    search = descend_signed_adam(loss, start, _LR, allowance)
    return start if search.images is None else search.images.clamp(0, 1)


def _matching(seen: Round, labels: Tensor, factors: Sequence[Tensor], noise: Tensor) -> Loss:
    """Return cosine distance plus batch statistics and smoothness, summed over the clients.

    Args:
        seen: the updates.
        labels: ``(V, n)`` int64.
        factors: ``(V, ...)`` weight of each entry of each parameter's update.
        noise: ``(V,)`` share of noise in each update.
    """
    target = [
        torch.stack([item.parameter_update[name] for item in seen.observations])
        for name in seen.observations[0].parameter_update
    ]
    aim = [-value * factor for value, factor in zip(target, factors, strict=True)]
    observed = _statistics(seen.observations)
    layers = {name: place for place, name in enumerate(seen.clients.norms)}
    smoothness, trust = _TV * (1 + noise.clamp(max=4)), _BN * (1 - noise.clamp(max=1))

    def loss(images: Tensor) -> Tensor:
        step = seen.clients.step(images, labels)
        sent = [v * f for v, f in zip(step.gradients.values(), factors, strict=True)]
        value = _angles(sent, aim) + smoothness * vmap(total_variation)(images)
        if observed:
            ours = [step.statistics[layers[name]] for name in observed]
            value = value + trust * _statistics_distance(ours, list(observed.values()))
        return value.sum()

    return loss


def _statistics(observations: Sequence[Observation]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what all of the updates show of BatchNorm's layers, ``(V, C)`` each, by layer.

    Pruning leaves nothing of a layer in some updates.
    """
    seen = [{layer.name: layer for layer in item.batch_statistics} for item in observations]
    return {
        name: (
            torch.stack([layers[name].mean for layers in seen]),
            torch.stack([layers[name].var for layers in seen]),
        )
        for name in seen[0]
        if all(name in layers for layers in seen)
    }


def _angles(candidate: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Return `CosineDistance` client by client, ``(V,)``; that one is for one client."""
    ours, theirs = (
        torch.cat([value.flatten(1) for value in update], dim=1) for update in (candidate, target)
    )
    return 1 - F.cosine_similarity(ours, theirs, eps=_TINY)


def _statistics_distance(candidate: Statistics, target: Statistics) -> Tensor:
    """Return `StatisticsDistance` client by client, ``(V,)``; that one is for one client."""
    terms = []
    for (mean, var), (mean_, var_) in zip(candidate, target, strict=True):
        floor = RELATIVE_VARIANCE_FLOOR * var_.mean(dim=1, keepdim=True) + _TINY
        scale = torch.maximum(var_, floor)
        sigma, sigma_ = var.clamp_min(_TINY).sqrt(), var_.clamp_min(_TINY).sqrt()
        squares = (mean - mean_).square() + (sigma - sigma_).square()
        terms.append((squares / scale).mean(dim=1))
    return torch.stack(terms).mean(dim=0)


def _factors(seen: Round, noise_std: Callable[[State], float]) -> tuple[list[Tensor], Tensor]:
    """Return the weight of each entry, and the share of noise in each update."""
    rows, shares = [], []
    for item, update in zip(seen.observations, seen.updates, strict=True):
        values = list(item.parameter_update.values())
        everything = torch.cat([value.flatten() for value in values])
        pruned = float((everything == 0).double().mean()) > _PRUNED
        variance = noise_std(update) ** 2
        rows.append(
            [
                (1 - _noise_share(value, variance)).clamp(0.02, 1)
                * ((value != 0).to(value) if pruned else torch.ones_like(value))
                for value in values
            ]
        )
        shares.append(_noise_share(everything, variance))
    return [torch.stack(column) for column in zip(*rows, strict=True)], torch.stack(shares)


def _noise_share(value: Tensor, variance: float) -> Tensor:
    return value.numel() * variance / value.square().sum().clamp_min(_TINY)
