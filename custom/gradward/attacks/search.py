"""What all iterative attacks share: a budget, the best iterate, a start, and batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

MIN_EVALUATIONS = 10


@dataclass(frozen=True)
class Budget:
    """How long one attack may search.

    Attributes:
        evaluations: of loss and gradient, of all candidate images at once.
        image_evaluations: bound on evaluations times the images that each of them processes, so
            that large updates do not take hours; at least 10 evaluations are granted.
        seconds: wall-clock bound; a result cut short by it cannot be reproduced.

    Raises:
        ValueError: a bound that is not positive.
    """

    evaluations: int
    image_evaluations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Refuse bounds that leave nothing to spend."""
        for name in ("evaluations", "image_evaluations", "seconds"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not value > 0):
                raise ValueError(f"{name} must be positive, got {value!r}")

    def evaluations_for(self, images_per_evaluation: int) -> int:
        """Return the evaluations granted to an attack that processes so many images in each."""
        if self.image_evaluations is None:
            return self.evaluations
        granted = self.image_evaluations // images_per_evaluation
        return min(self.evaluations, max(granted, MIN_EVALUATIONS))


class BudgetSpent(Exception):
    """Ends a search whose budget is spent."""


class Search:
    """Counts evaluations and keeps the iterate with the lowest loss.

    The lowest loss is all that an attacker can choose by; the last iterate can be far worse.

    Args:
        evaluations: after so many, :meth:`record` ends the search.
        seconds: the same for wall-clock time since construction.
    """

    def __init__(self, evaluations: int, seconds: float | None = None):
        self.limit = evaluations
        self.seconds = seconds
        self.evaluations = 0
        self.loss = math.inf
        self.images: Tensor | None = None
        self._start = time.monotonic()

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        share = self.evaluations / self.limit
        if self.seconds is not None:
            share = max(share, (time.monotonic() - self._start) / self.seconds)
        return min(share, 1.0)

    def record(self, loss: Tensor, images: Tensor) -> None:
        """Count one evaluation of ``images`` at ``loss``.

        Raises:
            FloatingPointError: the loss is not finite and never was.
            BudgetSpent: that was the last evaluation granted, or the search diverged after it had
                found something.
        """
        self.evaluations += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            if self.images is None:
                raise FloatingPointError("the attack's loss is not finite at its start")
            raise BudgetSpent
        if value < self.loss:
            self.loss, self.images = value, images.detach().clone()
        if self.progress >= 1:
            raise BudgetSpent

    def consider(self, other: Search, loss: Callable[[Tensor], Tensor]) -> None:
        """Take over another stage's result if it is better by this search's own ``loss``.

        The evaluations of both, and one for the comparison, are added up.
        """
        self.evaluations += other.evaluations + 1
        if other.images is None:
            return
        images = other.images.clamp(0, 1)
        value = float(loss(images).detach())
        if value < self.loss:
            self.loss, self.images = value, images


def starting_images(
    prior: Tensor, n_images: int, noise: float, generator: torch.Generator
) -> Tensor:
    """Return ``n_images`` copies of ``prior`` ``(C, H, W)``, with Gaussian noise if more than one.

    Identical copies would get identical gradients and never part.
    """
    images = prior.expand(n_images, *prior.shape).clone()
    if n_images > 1:
        draw = torch.randn(images.shape, generator=generator, dtype=torch.float32)
        images += noise * draw.to(images)
    return images


def assumed_batches(sizes: Sequence[int], steps: int) -> list[list[int]]:
    """Return ``steps`` batches of consecutive images, over again once all were used.

    The client's shuffling is unknown, but any order within the first epoch is only a relabelling
    of the images; what is truly assumed is that later epochs repeat the first one's batches.

    Args:
        sizes: of an epoch's batches, in order.
        steps: of the client.
    """
    images = iter(range(sum(sizes)))
    epoch = [list(islice(images, size)) for size in sizes]
    return [epoch[step % len(epoch)] for step in range(steps)]


def descend_lbfgs(
    loss: Callable[[Tensor], Tensor], start: Tensor, evaluations: int, seconds: float | None
) -> Search:
    """Minimise ``loss`` from ``start`` by L-BFGS (history 50, strong Wolfe line search).

    There is no box: clamping inside the search would break the line search's slopes.

    Raises:
        FloatingPointError: the loss is not finite at the start.
    """
    images = start.detach().clone().requires_grad_()
    search = Search(evaluations, seconds)
    optimizer = torch.optim.LBFGS(
        [images],
        max_iter=evaluations,
        max_eval=evaluations,
        history_size=50,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )

    def closure() -> Tensor:
        value = loss(images)
        (images.grad,) = torch.autograd.grad(value, images)
        search.record(value, images)
        return value

    # The line search may ask for more than max_eval; the search's own count is exact.
    with suppress(BudgetSpent):
        optimizer.step(closure)
    return search


def descend_signed_adam(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    lr: float,
    evaluations: int,
    seconds: float | None,
) -> Search:
    """Minimise ``loss`` over images in [0, 1] by Adam on the gradient's sign.

    The rate falls from ``lr`` to a hundredth of it along half a cosine (Geiping et al., 2020,
    section 4, with steps there).

    Raises:
        FloatingPointError: the loss is not finite at the start.
    """
    images = start.detach().clamp(0, 1).requires_grad_()
    search = Search(evaluations, seconds)
    optimizer = torch.optim.Adam([images], lr=lr)
    with suppress(BudgetSpent):
        while True:
            rate = lr * (0.01 + 0.99 * (1 + math.cos(math.pi * search.progress)) / 2)
            optimizer.param_groups[0]["lr"] = rate
            value = loss(images)
            (slope,) = torch.autograd.grad(value, images)
            search.record(value, images)
            images.grad = slope.sign()
            optimizer.step()
            with torch.no_grad():
                images.clamp_(0, 1)
    return search
