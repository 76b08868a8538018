"""Local training as a site does it, and as a server that knows the settings can repeat it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from gradward.losses import classification_loss
from gradward.training_settings import (
    BidoSettings,
    DpSgdSettings,
    TooFewImages,
    TrainingSettings,
    draw_batches,
)

__all__ = [
    "Batch",
    "BatchSource",
    "BidoSettings",
    "DpSgdSettings",
    "LocalRun",
    "RawBatchRefused",
    "RawImages",
    "State",
    "TooFewImages",
    "TrainingAborted",
    "TrainingSettings",
    "draw_batches",
    "state_copy",
    "state_difference",
    "train_locally",
]

State = dict[str, Tensor]
# Takes one optimiser step on images and labels and returns the mean loss before it.
Step = Callable[[Tensor, Tensor], Tensor]


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


@dataclass
class LocalRun:
    """What one round of local training did.

    Attributes:
        batches: for each step, the indices of its images; none where ``dp_sgd`` drew none.
        losses: for each step that had images, the mean training loss.
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


# The defences are imported where they are used: they import this module, and Opacus takes seconds.


def train_locally(
    model: nn.Module,
    source: BatchSource,
    settings: TrainingSettings,
    generator: torch.Generator,
    aborted: Callable[[], bool] = lambda: False,
    perturbed_only: bool = False,
    secret: torch.Generator | None = None,
    batches: list[list[int]] | None = None,
) -> LocalRun:
    """Train ``model`` in place for one round, BatchNorm in training mode.

    Args:
        model: on the device where training shall run.
        source: of the images.
        settings: hyperparameters.
        generator: CPU generator that orders the batches.
        aborted: asked before every batch.
        perturbed_only: refuse every batch that no perturber made, before the model sees it.
        secret: CPU generator of noise and of DP-SGD's sampling. Its seed must be the site's own
            and fresh every time: whoever can repeat the draws subtracts them, and the seed of the
            job is known to the server.
        batches: for each step, the positions of its images; None draws them as ``settings`` say.

    Raises:
        ValueError: no images, a batch that BatchNorm cannot train on, or no ``secret`` although
            ``settings.draws_noise``.
        TooFewImages: fewer than ``settings.min_batch_size``.
        ModelError: DP-SGD cannot train this model.
        RawBatchRefused: a raw batch although only perturbed ones are allowed.
        TrainingAborted: ``aborted`` said so.
        FloatingPointError: the loss is no longer finite.
    """
    if not len(source):
        raise ValueError(
            "there are no training images; see what `gradward data` says of the data set"
        )
    if secret is None:
        if settings.draws_noise:
            raise ValueError("these settings draw noise, which needs a secret generator of its own")
        secret = generator  # nothing will draw from it
    device = next(model.parameters()).device
    if settings.random_erasing or settings.input_noise:
        from gradward.defenses.input import defend_inputs

        source = defend_inputs(source, settings, secret)
    drawn = _draw(len(source), settings, generator, secret) if batches is None else batches
    run = LocalRun(batches=drawn)
    model.train()
    with _stepping(model, settings, len(source), secret) as step:
        for number, indices in enumerate(run.batches, start=1):
            if aborted():
                raise TrainingAborted("local training was aborted")
            batch = source.batch(indices)
            if perturbed_only and not batch.perturbed:
                raise RawBatchRefused(
                    "this site trains on perturbed images only; give the job a perturbation"
                )
            if batch.perturbed:
                run.perturbed_samples += len(batch.labels)
            else:
                run.raw_samples += len(batch.labels)
            loss = step(batch.images.to(device), batch.labels.to(device))
            if not indices:
                continue
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the training loss is {loss.item()} at step {number}; lower the learning rate"
                )
            run.losses.append(float(loss))
    return run


def _draw(
    n_images: int,
    settings: TrainingSettings,
    generator: torch.Generator,
    secret: torch.Generator,
) -> list[list[int]]:
    if settings.dp_sgd is None:
        return draw_batches(n_images, settings, generator)
    from gradward.defenses.dp_sgd import plan_round, poisson_batches

    return poisson_batches(n_images, plan_round(settings, n_images), secret)


@contextmanager
def _stepping(
    model: nn.Module, settings: TrainingSettings, n_images: int, secret: torch.Generator
) -> Iterator[Step]:
    """Yield what takes one optimiser step; hooks in the model go when the context closes."""
    optimizer = make_optimizer(model, settings)
    if settings.dp_sgd is not None:
        from gradward.defenses.dp_sgd import plan_round, private_step

        yield private_step(model, optimizer, plan_round(settings, n_images), secret)
    elif settings.bido is not None:
        from gradward.defenses.bido import BidoLoss

        with BidoLoss(model, settings.bido) as loss:
            yield _descend(optimizer, loss)
    else:
        yield _descend(
            optimizer,
            lambda images, labels: classification_loss(settings.loss, model(images), labels),
        )


def _descend(optimizer: torch.optim.Optimizer, loss_of: Step) -> Step:
    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def state_copy(model: nn.Module) -> State:
    """Detached CPU copies of all parameters and buffers."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def state_difference(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> State:
    """Return ``after - before``, name by name, counters included."""
    return {name: after[name] - before[name] for name in before}
