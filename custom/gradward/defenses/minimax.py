"""Gates learned against an adversary that learns too, at a rate that is given."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gradward.defenses.adversary_networks import LatentAdversary, class_means
from gradward.defenses.autoencoder import Progress, no_progress
from gradward.defenses.channel import rounded_down, transmit
from gradward.defenses.latent import ClassLatent
from gradward.defenses.rate import clip_whitened
from gradward.defenses.teacher import Teacher

# No dimension takes more than this, so that float32 still sees the noise: a gate of 0.9988.
MOST_NATS = 3.0
_WARM_UP = 30


@dataclass(frozen=True)
class MinimaxSettings:
    """How gates are learned.

    Attributes:
        steps: of the defender; the adversary takes as many, and 30 more at the start.
        batch_size: images a step.
        lr: of Adam on the shares of the rate.
        privacy: weight of the adversary's failure to rebuild the picture.
        features: weight of the teacher's features.
    """

    steps: int = 250
    batch_size: int = 64
    lr: float = 0.05
    privacy: float = 1.0
    features: float = 1.0


def gates_of(shares: Tensor, rate: float) -> Tensor:
    """Return gates ``(r,)`` that divide exactly ``rate`` nats by the softmax of ``shares``.

    Dimension t gets ``rho_t`` nats and the gate ``sqrt(1 - exp(-2 rho_t))``, so that the rate holds
    at every step of the learning and only its division is learned. What a dimension would get
    beyond 3 nats goes to the others in proportion. Differentiable in ``shares``.

    Raises:
        ValueError: more than 3 nats a dimension are asked for.
    """
    if rate > MOST_NATS * len(shares):
        raise ValueError(
            f"a rate of {rate:g} nats is beyond {MOST_NATS:g} nats in each of {len(shares)} "
            "dimensions"
        )
    full = torch.zeros_like(shares, dtype=torch.bool)
    nats = rate * torch.softmax(shares, 0)
    while bool((nats[~full] > MOST_NATS * (1 + 1e-6)).any()):
        full = full | (nats >= MOST_NATS)
        left = rate - MOST_NATS * int(full.sum())
        rest = torch.softmax(shares.masked_fill(full, -torch.inf), 0)
        nats = torch.where(full, MOST_NATS, left * rest)
    # The floor keeps the root's slope finite where a share has vanished.
    return (-torch.expm1(-2 * nats) + 1e-12).sqrt()


def learn_gates(
    latent: ClassLatent,
    images: Tensor,
    labels: Tensor,
    teacher: Teacher,
    rate: float,
    settings: MinimaxSettings,
    generator: torch.Generator,
    *,
    progress: Progress = no_progress,
    seconds: float | None = None,
) -> Tensor:
    """Learn where ``rate`` nats serve the task most and an adversary least.

    The defender lowers, by the division of the rate among the dimensions, the teacher's
    cross-entropy on ``x'`` plus the distance of its features from those of ``x`` (over their
    variance) plus ``privacy * relu(prior - MSE(R(w'), x)) / prior``, where ``prior`` is the error
    of guessing the class mean. The adversary ``R`` lowers that MSE in turns. After the idea of
    arXiv 2503.16542, whose loss was not available: the terms are this project's choice, and so is
    the exact rate constraint in place of a rate penalty.

    Args:
        latent: coordinates and decoder, fixed.
        images: ``(N, C, H, W)`` float32 in [0, 1].
        labels: ``(N,)`` int64.
        teacher: trained on clean images, frozen.
        rate: nats.
        settings: hyperparameters.
        generator: batches, noise and the adversary's weights.
        progress: told the part's name and the share done.
        seconds: time budget; a fit that it cut short cannot be reproduced.

    Returns:
        Gates ``(r,)`` float32 in [0, 1) of the asked rate.

    Raises:
        ValueError: more than 3 nats a dimension are asked for.
    """
    classes = teacher.head.out_features
    w = latent.white(images, labels)
    with torch.no_grad():
        features = torch.cat([teacher(part)[0] for part in images.split(256)])
    spread = features.var()
    means = class_means(images, labels, classes)
    prior = float((means[labels] - images).square().mean())
    rebuilder = LatentAdversary(latent, classes, generator)
    shares = torch.zeros(latent.dimensions, requires_grad=True)
    defender = torch.optim.Adam([shares], lr=settings.lr)
    adversary = torch.optim.Adam(rebuilder.parameters(), lr=1e-3)

    def view(gate: Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(images), (settings.batch_size,), generator=generator)
        clipped, _ = clip_whitened(w[chosen], gate)
        noise = torch.randn(clipped.shape, generator=generator)
        return chosen, transmit(clipped, gate, noise)

    start, share = time.monotonic(), 0.0
    for step in range(settings.steps + _WARM_UP):
        gate = gates_of(shares, rate)
        chosen, seen = view(gate.detach())
        rebuilt = rebuilder(seen, labels[chosen], gate.detach())
        loss = F.mse_loss(rebuilt, images[chosen]) / prior
        adversary.zero_grad()
        loss.backward()
        adversary.step()
        if step < _WARM_UP:
            continue
        chosen, seen = view(gate)
        found, logits = teacher(latent.decode(seen, labels[chosen]))
        loss = settings.features * F.mse_loss(found, features[chosen]) / spread
        error = (rebuilder(seen, labels[chosen], gate) - images[chosen]).square().mean()
        loss = loss + settings.privacy * F.relu(prior - error) / prior
        loss = loss + F.cross_entropy(logits, labels[chosen])
        defender.param_groups[0]["lr"] = settings.lr * (1.0 if share < 0.7 else 0.3)
        defender.zero_grad()
        loss.backward()
        defender.step()
        share = (step + 1 - _WARM_UP) / settings.steps
        if seconds is not None:
            share = max(share, (time.monotonic() - start) / seconds)
        if (step - _WARM_UP) % 25 == 0:
            progress("gates", min(share, 1.0))
        if share >= 1:
            break
    return rounded_down(gates_of(shares.detach(), rate))
