"""All attacks on one update, each in its budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from gradward.attacks.batches import assumed_batches, given_batches
from gradward.attacks.budget import Allowance, Budget, Meter
from gradward.attacks.case import AttackCase
from gradward.attacks.derivatives import second_derivatives
from gradward.attacks.dropout import dropout_left_out
from gradward.attacks.label_rehearsal import RehearsalBook
from gradward.attacks.labels import infer_labels
from gradward.attacks.observation import AttackRefused, Observation
from gradward.attacks.spec import AttackSpec
from gradward.data.images import ImageSet
from gradward.randomness import own_randomness
from gradward.training import TrainingSettings

REASON_LENGTH = 300
# No round is longer, and what an attack makes of each step must have room in the memory.
MOST_STEPS = 100_000

# Called with an attack's name and the share of its budget that is spent, in [0, 1].
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Restart:
    """One of several runs of an attack from different starts.

    Attributes:
        loss: the lowest.
        images: ``(n, C, H, W)`` float32 in [0, 1] on the CPU.
    """

    loss: float
    images: Tensor


@dataclass(frozen=True)
class AttackResult:
    """What one attack came to.

    Attributes:
        attack: its name.
        status: ``"skipped"`` where the attack does not apply, ``"failed"`` where it broke.
        reason: of a status other than ``"ok"``; else empty.
        images: ``(n, C, H, W)`` float32 in [0, 1] on the CPU, of the lowest loss; None without.
        labels: ``(n,)`` int64, if the attack used any.
        loss: the lowest; comparable between runs of one attack, not between attacks.
        restarts: every run that came to something, in their order; their spread tells how much of
            the result is the start's.
        evaluations: spent.
        seconds: wall clock.
        knowledge: as :meth:`Knowledge.to_dict`; empty where the attack did not run.
    """

    attack: str
    status: Literal["ok", "skipped", "failed"]
    reason: str = ""
    images: Tensor | None = None
    labels: Tensor | None = None
    loss: float | None = None
    restarts: tuple[Restart, ...] = ()
    evaluations: int = 0
    seconds: float = 0.0
    knowledge: dict[str, str] = field(default_factory=dict)


def images_in_update(
    observation: Observation,
    settings: TrainingSettings,
    n_images: int | None,
    stated_steps: int | None = None,
) -> int:
    """Return how many images an attacker reconstructs.

    Args:
        observation: its steps, where seen, go before those of the settings.
        settings: of the client.
        n_images: the number, where the server was told; None guesses full batches and no image
            twice in an epoch: ``K / epochs`` steps of ``batch_size``.
        stated_steps: K as the client states it, which counts last: it can be made up.

    Raises:
        AttackRefused: K is neither seen nor set nor stated, or no number of steps that an update
            can be attacked after.
    """
    steps = observation.steps or settings.steps
    if steps is None:
        steps = stated_steps
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise AttackRefused(
            f"the update's number of local steps is none from 1 to {MOST_STEPS}, as its client or "
            "its counters state it"
        )
    if n_images is not None:
        return n_images
    if steps is None:
        raise AttackRefused("neither the number of images nor that of local steps is known")
    epochs = 1 if settings.steps else settings.epochs
    return math.ceil(steps / epochs) * settings.batch_size


def run_portfolio(
    observation: Observation,
    *,
    prior: Tensor,
    n_images: int,
    settings: TrainingSettings,
    attacks: Sequence[AttackSpec],
    budget: Budget,
    seed: int,
    device: torch.device | str = "cpu",
    labels: Tensor | None = None,
    batches: Sequence[Sequence[int]] | None = None,
    public: ImageSet | None = None,
    rehearsals: RehearsalBook | None = None,
    progress: Progress | None = None,
) -> list[AttackResult]:
    """Run each attack on one update; one that breaks does not stop the others.

    Args:
        observation: the update and its global state.
        prior: ``(C, H, W)`` in [0, 1].
        n_images: how many images to reconstruct, at least 1.
        settings: of the client.
        attacks: in the order of the results.
        budget: of each attack.
        seed: of each attack's generator and of what the network draws; the same gives the same
            images.
        device: where to compute.
        labels: ``(n_images,)`` int64, if the attacker is given them; None has them inferred.
        batches: for each local step, the indices of its images, if the attacker is given them;
            None assumes consecutive images, and the first epoch's batches in every later one.
        public: images like the client's, if the attacker has some, for attacks that learn a prior
            and, where labelled, to infer labels by; a label below 0 is unknown.
        rehearsals: what was rehearsed before on such images; None starts a book with ``seed``.
        progress: called as attacks go on.

    Raises:
        ValueError: a prior, public images, batches or a number of images that cannot be.
    """
    if prior.ndim != 3:
        raise ValueError(f"the prior must be (C, H, W), got {tuple(prior.shape)}")
    if public is not None and public.images.shape[1:] != prior.shape:
        raise ValueError(
            f"public images must be {tuple(prior.shape)} like the prior, got "
            f"{tuple(public.images.shape[1:])}"
        )
    if n_images < 1:
        raise ValueError(f"n_images must be at least 1, got {n_images}")
    there = observation.to(device)
    start = prior.to(next(there.model.parameters()))
    steps = there.steps or settings.number_of_steps(n_images)
    sizes = settings.batch_sizes(n_images)
    if batches is None:
        order = assumed_batches(sizes, steps)
    else:
        order = given_batches(batches, n_images, steps, max(sizes))
    case = AttackCase(
        observation=there,
        settings=settings,
        prior=start,
        n_images=n_images,
        batches=order,
        labels=None if labels is None else labels.to(device),
        public=None if public is None else public.images.to(start),
        batches_given=batches is not None,
    )
    inferred = None
    with dropout_left_out(there.model, start):
        if labels is None and any(_needs_labels(spec, case) for spec in attacks):
            try:
                book = RehearsalBook(seed) if rehearsals is None else rehearsals
                with own_randomness(seed, device):
                    inferred = infer_labels(
                        there, settings, n_images, order, start[None], public, book
                    )
                case = replace(case, labels=inferred.values.to(device))
            except Exception as error:
                # Half of what a reason may be, so that there is room for what an attack says of it.
                case = replace(case, no_labels_because=str(error)[: REASON_LENGTH // 2])
        by_public_images = inferred is not None and inferred.by_public_images
        known = _Labelling(labels is not None, by_public_images)
        return [_run(spec, case, budget, seed, known, progress) for spec in attacks]


@dataclass(frozen=True)
class _Labelling:
    """Where a case's labels come from."""

    given: bool
    by_public_images: bool


def _run(
    spec: AttackSpec,
    case: AttackCase,
    budget: Budget,
    seed: int,
    labelling: _Labelling,
    progress: Progress | None,
) -> AttackResult:
    started = time.monotonic()
    tell = None if progress is None else partial(progress, spec.name)
    meter = Meter(budget, spec.attack.images_per_evaluation(case), tell)
    restarts: list[Restart] = []
    try:
        with own_randomness(seed, case.prior.device), second_derivatives():
            for number in range(spec.restarts):
                search = spec.attack.run(
                    replace(case, restart=number),
                    Allowance(meter, (number + 1) / spec.restarts),
                    torch.Generator().manual_seed(seed + number),
                )
                if search.images is None:
                    raise FloatingPointError("the attack found no finite loss")
                restarts.append(Restart(search.loss, search.images.clamp(0, 1).float().cpu()))
    except AttackRefused as error:
        return AttackResult(spec.name, "skipped", _reason(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {_reason(error)}"
        return AttackResult(spec.name, "failed", reason, seconds=time.monotonic() - started)
    knowledge = spec.attack.knowledge(case)
    uses_labels = _uses_labels(spec, case)
    if uses_labels and labelling.given:
        knowledge = replace(knowledge, labels="given")
    elif uses_labels and labelling.by_public_images:
        knowledge = replace(knowledge, public_images="given")
    best = min(restarts, key=lambda restart: restart.loss)
    return AttackResult(
        attack=spec.name,
        status="ok",
        images=best.images,
        labels=case.labels.cpu() if uses_labels and case.labels is not None else None,
        loss=best.loss,
        restarts=tuple(restarts),
        evaluations=meter.evaluations,
        seconds=time.monotonic() - started,
        knowledge=knowledge.to_dict(),
    )


def _uses_labels(spec: AttackSpec, case: AttackCase) -> bool:
    return spec.attack.knowledge(case).labels != "lacked"


def _needs_labels(spec: AttackSpec, case: AttackCase) -> bool:
    """Whether labels are worth a rehearsal: an attack beyond its limits would only refuse."""
    return spec.takes(case.n_images, len(case.batches)) and _uses_labels(spec, case)


def _reason(error: Exception) -> str:
    return str(error)[:REASON_LENGTH]
