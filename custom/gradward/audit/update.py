"""One update, attacked, compared with its control and, where the truth is known, scored."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from gradward.attacks import (
    ATTACK_NAMES,
    AttackRefused,
    AttackSpec,
    Budget,
    Observation,
    ObservationError,
    images_in_update,
)
from gradward.attacks.batches import given_batches, images_in_batches
from gradward.attacks.beside_control import run_beside_control
from gradward.attacks.image_prior import learns
from gradward.attacks.portfolio import Progress
from gradward.attacks.precision import Precision
from gradward.attacks.spec import check_distinct
from gradward.audit import notes
from gradward.audit.facts import AuditError, AuditFacts, facts_of_update
from gradward.audit.references import References, check_form
from gradward.audit.result import AuditResult
from gradward.audit.scoring import Scorer
from gradward.data import ImageSet
from gradward.models.trainable import check_trainable
from gradward.state_files import UpdateIs, as_difference
from gradward.training import TrainingSettings

CPU_SECONDS = 60.0


def audit_update(
    model: nn.Module,
    global_state: Mapping[str, Any],
    update: Mapping[str, Any],
    *,
    image_shape: tuple[int, int, int],
    settings: TrainingSettings,
    n_images: int | None = None,
    prior: Tensor | None = None,
    labels: Tensor | None = None,
    batches: Sequence[Sequence[int]] | None = None,
    truth: Tensor | None = None,
    public: ImageSet | None = None,
    attacks: Sequence[AttackSpec] | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    update_is: UpdateIs = "auto",
    model_name: str | None = None,
) -> AuditResult:
    """Tell what a server could rebuild from one client's update.

    Args:
        model: gives the architecture; it is not changed.
        global_state: tensors or arrays by name, where the client started.
        update: what came back: the full state or its difference, see ``update_is``. BatchNorm's
            buffers may be missing.
        image_shape: channels, height and width of the images as the network sees them.
        settings: of the client's local training, as the attacker is told.
        n_images: behind the update, if the attacker is told; None takes that of ``labels``, else of
            ``batches``, else infers it from the steps.
        prior: ``(C, H, W)`` in [0, 1], an image like the client's on average; None takes the mean
            of the public images.
        labels: ``(n_images,)`` int64, if the attacker is told; None has them inferred. In any
            order, or with ``batches`` in that of their indices.
        batches: for each local step, in order, the indices of its images, counted from 0, if the
            attacker is told; None assumes that every epoch repeats the first one's batches.
        truth: ``(m, C, H, W)`` in [0, 1], the images behind the update, as many as the attacker is
            told; if he infers another number, the most alike are compared. None measures nothing.
        public: images like the client's and not of it, for control and public mean. None takes
            histology patches as a stand-in, brought to ``image_shape``. Where they are labelled
            (a label below 0 is unknown), or an attack learns a prior, the attacks get three
            quarters of each class, and the control the rest.
        attacks: each at most once; None takes all.
        budget: of each attack on the update, and again on the control; None is 60 CPU seconds.
        seed: of attacks and control.
        device: where the attacks run.
        progress: called with an attack's name and the share of its budget that is spent.
        update_is: ``"state"``, ``"difference"``, or ``"auto"`` to tell them apart, see
            :func:`gradward.state_files.as_difference`.
        model_name: for the result; None takes the class's name.

    Raises:
        AuditError: states that are not of this model, an update in which nothing was trained, or
            other arguments that do not fit together, with the remedy.
        ModelError: the network cannot train on images of this shape.
    """
    changed, taken_as = as_difference(global_state, update, update_is)
    precision = Precision.of(update, of_state=taken_as == "state")
    try:
        observation = Observation.from_update(model, global_state, changed)
    except ObservationError as error:
        raise AuditError(
            f"{error}; check that both states are of one client's round and of this network"
        ) from None
    told = _number_told(n_images, labels, batches)
    try:
        number = images_in_update(observation, settings, told)
    except AttackRefused as error:
        raise AuditError(f"{error}; say how many images are behind the update") from None
    if number < 1:
        raise AuditError(f"an update holds at least 1 image, got {number}")
    check_trainable(model, image_shape[1:], image_shape[0], settings.smallest_batch(number))
    classes = _number_of_classes(observation.model, image_shape)
    if labels is not None:
        _check_labels(labels, number, classes)
    if batches is not None:
        _check_batches(batches, observation, settings, number)
    if truth is not None:
        check_form("the truth", truth, image_shape)
        if told is not None and len(truth) != number:
            raise AuditError(
                f"the truth must be the images behind the update, {number} as it was said, got "
                f"{len(truth)}; leave out the others, or leave their number out if it is not known"
            )
    specs = chosen_attacks(attacks)
    learning = any(learns(spec.attack) for spec in specs)
    references = References.choose(prior, public, image_shape, learning)
    bound = Budget(cpu_seconds=CPU_SECONDS) if budget is None else budget
    control_images, control_labels = references.control_set(labels, classes)
    try:
        real, control = run_beside_control(
            observation,
            changed,
            precision=precision,
            control_images=control_images,
            control_labels=control_labels,
            prior=references.prior,
            n_images=number,
            settings=settings,
            attacks=specs,
            budget=bound,
            seed=seed,
            device=device,
            labels=labels,
            batches=batches,
            public=references.of_attacker,
            progress=progress,
        )
    except (FloatingPointError, ObservationError) as error:
        raise AuditError(
            f"the control cannot be trained with these settings: {error}; correct them"
        ) from None
    facts = AuditFacts(
        model=model_name or type(model).__name__,
        **facts_of_update(observation, global_state, changed),
        local_steps=observation.steps or settings.number_of_steps(number),
        image_shape=image_shape,
        n_images=number,
        n_images_given=told is not None,
        update_is=taken_as,
        settings=asdict(settings),
        prior=references.prior_from,
        public=references.public_from,
        budget={name: value for name, value in asdict(bound).items() if value is not None},
        seed=seed,
        device=str(device),
        attack_options={spec.name: spec.changed for spec in specs if spec.changed},
        notes=(
            *notes.of_update(observation, settings, number, precision, references.prior),
            *notes.of_attacks(real, number, references, batches is not None, truth),
        ),
    )
    return Scorer(truth, references).result(facts, real, control)


def chosen_attacks(attacks: Sequence[AttackSpec] | None) -> list[AttackSpec]:
    """Return the attacks that are given, or all.

    Raises:
        AuditError: none, or one twice.
    """
    specs = [AttackSpec(name) for name in ATTACK_NAMES] if attacks is None else list(attacks)
    try:
        check_distinct(specs)
    except ValueError as error:
        raise AuditError(str(error)) from None
    return specs


def _number_told(
    n_images: int | None, labels: Tensor | None, batches: Sequence[Sequence[int]] | None
) -> int | None:
    if n_images is not None:
        return n_images
    if labels is not None:
        return len(labels)
    try:
        return None if batches is None else images_in_batches(batches)
    except ValueError as error:
        raise AuditError(str(error)) from None


def _check_batches(
    batches: Sequence[Sequence[int]],
    observation: Observation,
    settings: TrainingSettings,
    n_images: int,
) -> None:
    steps = observation.steps or settings.number_of_steps(n_images)
    try:
        given_batches(batches, n_images, steps, max(settings.batch_sizes(n_images)))
    except ValueError as error:
        raise AuditError(str(error)) from None


def _number_of_classes(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(torch.full((1, *image_shape), 0.5))
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise AuditError("the network must map images to logits (B, classes)")
    return logits.shape[1]


def _check_labels(labels: Tensor, n_images: int, n_classes: int) -> None:
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise AuditError(
            "labels must be whole numbers (int64) in one row, got "
            f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
        )
    if len(labels) != n_images:
        raise AuditError(f"labels must be one for each image, {n_images} in all, got {len(labels)}")
    outside = labels[(labels < 0) | (labels >= n_classes)].tolist()
    if outside:
        raise AuditError(
            f"label {outside[0]} is no class of this network, which has classes 0 to "
            f"{n_classes - 1}"
        )
