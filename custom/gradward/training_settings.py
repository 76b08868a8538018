"""Hyperparameters of local training, and how they cut a site's images into batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

from gradward.losses import LOSSES

OPTIMIZERS = ("sgd", "adam")

Settings = TypeVar("Settings")


class TooFewImages(ValueError):
    """A site has fewer images than the smallest batch it may train on."""


@dataclass(frozen=True)
class DpSgdSettings:
    """DP-SGD (Abadi et al. 2016, arXiv 1607.00133), see :mod:`gradward.defenses.dp_sgd`.

    Attributes:
        epsilon: budget of the whole job, from which the noise is calculated; or
        noise_multiplier: standard deviation of the noise over ``max_grad_norm``; exactly one of
            the two is given.
        rounds: of the whole job; belongs to ``epsilon``.
        delta: of every epsilon that is stated; below one over the number of images.
        max_grad_norm: L2 norm that each image's gradient is clipped to.
        augmentations: randomly moved copies of each image whose gradients are averaged before they
            are clipped (De et al. 2022, arXiv 2204.13650): they cost time and no privacy, and 4
            learn more at the same epsilon. 1 takes the image as it is.

    Raises:
        TypeError, ValueError: with the offending value.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = None
    rounds: int | None = None
    delta: float = 1e-5
    max_grad_norm: float = 1.0
    augmentations: int = 1

    def __post_init__(self) -> None:
        """Check every value."""
        check_count(self, "augmentations")
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("dp_sgd needs exactly one of epsilon and noise_multiplier")
        if (self.epsilon is None) != (self.rounds is None):
            raise ValueError("rounds of the whole job and epsilon are given together in dp_sgd")
        for name in ("epsilon", "noise_multiplier", "delta", "max_grad_norm"):
            if getattr(self, name) is not None:
                check_number(self, name, zero=False)
        if self.rounds is not None:
            check_count(self, "rounds")
        if self.delta >= 1:
            raise ValueError(f"delta must be below 1, got {self.delta}")


@dataclass(frozen=True)
class BidoSettings:
    """BiDO (Peng et al. 2022, arXiv 2206.05483), see :mod:`gradward.defenses.bido`.

    Attributes:
        hidden_layers: names in ``model.named_modules()`` whose outputs are the hidden ones.
        lambda_x: weight of the dependence between images and hidden outputs, which is lowered.
        lambda_y: weight of the dependence between hidden outputs and labels, which is raised.

    Raises:
        TypeError, ValueError: with the offending value.
    """

    hidden_layers: tuple[str, ...]
    lambda_x: float = 0.05
    lambda_y: float = 0.5

    def __post_init__(self) -> None:
        """Check every value; JSON gives the layers as a list."""
        names = self.hidden_layers
        if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
            raise TypeError(f"hidden_layers must be a list of names, got {names!r}")
        if not names:
            raise ValueError("hidden_layers must name at least one layer")
        object.__setattr__(self, "hidden_layers", tuple(names))
        for name in ("lambda_x", "lambda_y"):
            check_number(self, name)


@dataclass(frozen=True)
class TrainingSettings:
    """Hyperparameters of one round of local training.

    Attributes:
        batch_size: images in a batch; the last batch of an epoch may be smaller. With ``dp_sgd``
            the mean size of batches that are drawn image by image.
        min_batch_size: a smaller last batch is merged into the one before it, and a site with
            fewer images refuses to train.
        lr: learning rate.
        epochs: passes over the site's images.
        steps: number of optimiser steps; when given, it replaces ``epochs``.
        optimizer: ``"sgd"`` or ``"adam"``; a fresh one every round.
        loss: ``"cross_entropy"``, or ``"bce"``, each class against all others.
        momentum: of SGD.
        weight_decay: L2 penalty as ``torch.optim`` applies it.
        input_noise: standard deviation of Gaussian noise on the images; 0 for none.
        random_erasing: probability that a rectangle of an image is erased; 0 for none.
        dp_sgd: differentially private steps, or None.
        bido: dependence terms in the loss, or None.

    Raises:
        TypeError, ValueError: with the offending value.
    """

    batch_size: int = 8
    min_batch_size: int = 1
    lr: float = 0.01
    epochs: int = 1
    steps: int | None = None
    optimizer: str = "sgd"
    loss: str = "cross_entropy"
    momentum: float = 0.0
    weight_decay: float = 0.0
    input_noise: float = 0.0
    random_erasing: float = 0.0
    dp_sgd: DpSgdSettings | None = None
    bido: BidoSettings | None = None

    def __post_init__(self) -> None:
        """Check every value, so that a typo in a job stops at its start."""
        for name in ("batch_size", "min_batch_size", "epochs"):
            check_count(self, name)
        if self.steps is not None:
            check_count(self, "steps")
        check_number(self, "lr", zero=False)
        for name in ("momentum", "weight_decay", "input_noise", "random_erasing"):
            check_number(self, name)
        if self.random_erasing > 1:
            raise ValueError(f"random_erasing is a probability, got {self.random_erasing}")
        if self.min_batch_size > self.batch_size:
            raise ValueError(
                f"min_batch_size must not exceed batch_size, got {self.min_batch_size}"
            )
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {OPTIMIZERS}, got {self.optimizer!r}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, got {self.loss!r}")
        if self.loss != "cross_entropy" and (self.dp_sgd is not None or self.bido is not None):
            raise ValueError(f"dp_sgd and bido train with cross_entropy, got loss {self.loss!r}")
        if self.optimizer == "adam" and self.momentum:
            raise ValueError(f"momentum belongs to sgd, got {self.momentum} with adam")
        if self.dp_sgd is not None and self.bido is not None:
            raise ValueError("bido compares images with each other; dp_sgd needs each on its own")
        if self.dp_sgd is not None and self.min_batch_size > 1:
            raise ValueError(
                "min_batch_size has no meaning where dp_sgd draws each image by itself"
            )
        if self.bido is not None and self.batch_size < 2:
            raise ValueError("bido needs a batch_size of at least 2: one image depends on nothing")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """Build settings from JSON values, refusing names that do not exist."""
        nested = {"dp_sgd": DpSgdSettings, "bido": BidoSettings}
        given = {
            name: _build(nested[name], value, name)
            if name in nested and value is not None
            else value
            for name, value in values.items()
        }
        return _build(cls, given, "training")

    @property
    def draws_noise(self) -> bool:
        """Whether training draws what the server must not be able to repeat."""
        return bool(self.input_noise or self.random_erasing or self.dp_sgd)

    def batch_sizes(self, n_images: int) -> list[int]:
        """Sizes of the batches of one epoch, in order (of their means with ``dp_sgd``)."""
        full, rest = divmod(n_images, self.batch_size)
        sizes = [self.batch_size] * full
        if rest >= self.min_batch_size or (rest and not sizes):
            sizes.append(rest)
        elif rest:
            sizes[-1] += rest
        return sizes

    def smallest_batch(self, n_images: int) -> int:
        """Size of the smallest batch that the model will see; 1 where images are drawn."""
        return 1 if self.dp_sgd is not None else min(self.batch_sizes(n_images))

    def number_of_steps(self, n_images: int) -> int:
        """Optimiser steps that a site with ``n_images`` images takes in a round."""
        return self.steps or self.epochs * len(self.batch_sizes(n_images))


def draw_batches(
    n_images: int, settings: TrainingSettings, generator: torch.Generator
) -> list[list[int]]:
    """Shuffle anew each epoch and cut into batches; stop after ``settings.steps`` if given.

    Raises:
        TooFewImages: not one batch of ``settings.min_batch_size`` can be filled.
    """
    if n_images < settings.min_batch_size:
        raise TooFewImages(
            f"this site has {n_images} training images, fewer than min_batch_size = "
            f"{settings.min_batch_size}; it does not train, for a small batch gives much away"
        )
    total = settings.number_of_steps(n_images)
    sizes = settings.batch_sizes(n_images)
    batches: list[list[int]] = []
    while len(batches) < total:
        order = torch.randperm(n_images, generator=generator)
        batches += [part.tolist() for part in order.split(sizes)]
    return batches[:total]


def check_count(settings: object, name: str) -> None:
    """Make sure that an attribute is an integer of at least 1.

    Raises:
        TypeError, ValueError: with name and value.
    """
    value = getattr(settings, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_number(settings: object, name: str, *, zero: bool = True) -> None:
    """Make sure that an attribute is a finite number above 0, or 0 where ``zero`` allows it.

    Raises:
        TypeError, ValueError: with name and value.
    """
    value = getattr(settings, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        bound = "at least 0" if zero else "above 0"
        raise ValueError(f"{name} must be finite and {bound}, got {value}")


def _build(kind: type[Settings], values: Any, what: str) -> Settings:
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise TypeError(f"{what} must be an object with {sorted(known)}, got {values!r}")
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown {what} settings {unknown}; known are {sorted(known)}")
    return kind(**values)
