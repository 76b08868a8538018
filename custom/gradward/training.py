"""Local training as a site does it, and as a server that knows the settings can repeat it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = dict[str, Tensor]

OPTIMIZERS = ("sgd", "adam")


class TrainingAborted(RuntimeError):
    """Raised within a batch of the abort signal."""


class RawBatchRefused(RuntimeError):
    """A raw batch was about to reach a model that may only see perturbed ones."""


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Attributes:
        images: ``(B, C, H, W)`` float32 in [0, 1].
        labels: ``(B,)`` int64.
        perturbed: True only where a perturber made these images.
    """

    images: Tensor
    labels: Tensor
    perturbed: bool = False


class BatchSource(Protocol):
    """Where a training step gets its images from; positions are those of the site's images."""

    def __len__(self) -> int:
        """Return the number of images."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the images at these positions as training shall see them."""


class RawImages:
    """The images as they are."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        """Args: ``(N, C, H, W)`` float32 and ``(N,)`` int64."""
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the raw images at ``indices``."""
        index = list(indices)
        return Batch(self.images[index], self.labels[index])


@dataclass(frozen=True)
class TrainingSettings:
    """Hyperparameters of one round of local training.

    Attributes:
        batch_size: images in a batch; the last batch of an epoch may be smaller.
        lr: learning rate.
        epochs: passes over the site's images.
        steps: number of optimiser steps; when given, it replaces ``epochs``.
        optimizer: ``"sgd"`` or ``"adam"``; a fresh one every round.
        momentum: of SGD.
        weight_decay: L2 penalty as ``torch.optim`` applies it.

    Raises:
        TypeError, ValueError: with the offending value.
    """

    batch_size: int = 8
    lr: float = 0.01
    epochs: int = 1
    steps: int | None = None
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Check every value, so that a typo in a job stops at its start."""
        for name in ("batch_size", "epochs", "steps"):
            value = getattr(self, name)
            if name == "steps" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not math.isfinite(value) or value < 0 or (name == "lr" and value == 0):
                raise ValueError(
                    f"{name} must be finite and not negative (lr above 0), got {value}"
                )
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {OPTIMIZERS}, got {self.optimizer!r}")
        if self.optimizer == "adam" and self.momentum:
            raise ValueError(f"momentum belongs to sgd, got {self.momentum} with adam")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """Build settings from JSON values, refusing names that do not exist."""
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown training settings {unknown}; known are {sorted(known)}")
        return cls(**values)

    def number_of_steps(self, n_images: int) -> int:
        """Optimiser steps that a site with ``n_images`` images takes in a round."""
        return self.steps or self.epochs * math.ceil(n_images / self.batch_size)


@dataclass
class LocalRun:
    """What one round of local training did.

    Attributes:
        batches: for each step, the indices of its images.
        losses: for each step, the mean training loss.
        raw_samples: samples trained on as they are, counted at each use.
        perturbed_samples: samples that a perturber made, counted at each use.
    """

    batches: list[list[int]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    raw_samples: int = 0
    perturbed_samples: int = 0

    @property
    def images_seen(self) -> list[int]:
        """Indices of the distinct images used, in order of first use."""
        return list(dict.fromkeys(index for batch in self.batches for index in batch))


def draw_batches(
    n_images: int, settings: TrainingSettings, generator: torch.Generator
) -> list[list[int]]:
    """Shuffle anew each epoch and cut into batches; stop after ``settings.steps`` if given."""
    total = settings.number_of_steps(n_images)
    batches: list[list[int]] = []
    while len(batches) < total:
        order = torch.randperm(n_images, generator=generator).tolist()
        batches += [
            order[start : start + settings.batch_size]
            for start in range(0, n_images, settings.batch_size)
        ]
    return batches[:total]


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Build the optimiser that ``settings`` name, over the parameters that train."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )


def train_locally(
    model: nn.Module,
    source: BatchSource,
    settings: TrainingSettings,
    generator: torch.Generator,
    aborted: Callable[[], bool] = lambda: False,
    perturbed_only: bool = False,
) -> LocalRun:
    """Train ``model`` in place for one round, BatchNorm in training mode.

    Args:
        model: on the device where training shall run.
        source: of the images.
        settings: hyperparameters.
        generator: CPU generator that orders the batches.
        aborted: asked before every batch.
        perturbed_only: refuse every batch that no perturber made, before the model sees it.

    Raises:
        ValueError: no images, or a batch that BatchNorm cannot train on.
        RawBatchRefused: a raw batch although only perturbed ones are allowed.
        TrainingAborted: ``aborted`` said so.
        FloatingPointError: the loss is no longer finite.
    """
    if not len(source):
        raise ValueError("there are no training images")
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, settings)
    run = LocalRun(batches=draw_batches(len(source), settings, generator))
    model.train()
    for indices in run.batches:
        if aborted():
            raise TrainingAborted("local training was aborted")
        batch = source.batch(indices)
        if perturbed_only and not batch.perturbed:
            raise RawBatchRefused("this site trains on perturbed images only")
        if batch.perturbed:
            run.perturbed_samples += len(batch.labels)
        else:
            run.raw_samples += len(batch.labels)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch.images.to(device)), batch.labels.to(device))
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss.item()} at step {len(run.losses) + 1}; "
                "lower the learning rate"
            )
        loss.backward()
        optimizer.step()
        run.losses.append(float(loss.detach()))
    return run


def state_copy(model: nn.Module) -> State:
    """Detached CPU copies of all parameters and buffers."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def state_difference(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> State:
    """Return ``after - before``, name by name, counters included."""
    return {name: after[name] - before[name] for name in before}
