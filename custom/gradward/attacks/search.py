"""What all iterative attacks share: the best iterate, and two descents."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from torch.optim.adam import adam

from gradward.attacks.budget import Allowance

# A search that gained less than this share of its loss in so many evaluations has ended.
PLATEAU = 100
LEAST_GAIN = 1e-4
_NO_LIMIT = 10**9


class BudgetSpent(Exception):
    """Ends a search whose budget is spent."""


class Search:
    """Counts evaluations and keeps the iterate with the lowest loss.

    The lowest loss is all that an attacker can choose by; the last iterate can be far worse.

    Args:
        allowance: once it is spent, :meth:`record` ends the search.
        ends_on_plateau: whether a search that gains nothing any more ends before that.
    """

    def __init__(self, allowance: Allowance, ends_on_plateau: bool = False):
        self._allowance = allowance
        self._plateau = PLATEAU if ends_on_plateau else math.inf
        self._gained_at = allowance.meter.evaluations
        self._gained = math.inf
        self.loss = math.inf
        self.images: Tensor | None = None

    def record(self, loss: Tensor, images: Tensor) -> None:
        """Count one evaluation of ``images`` at ``loss``.

        Raises:
            FloatingPointError: the loss is not finite and never was.
            BudgetSpent: that was the last evaluation granted, nothing more was gained, or the
                search diverged after it had found something.
        """
        meter = self._allowance.meter
        meter.count()
        value = float(loss)
        if not math.isfinite(value):
            if self.images is None:
                raise FloatingPointError("the attack's loss is not finite at its start")
            raise BudgetSpent
        if value < self.loss:
            self.loss, self.images = value, images.detach().clone()
        if value < self._gained * (1 - LEAST_GAIN):
            self._gained, self._gained_at = value, meter.evaluations
        if self._allowance.progress >= 1 or meter.evaluations - self._gained_at >= self._plateau:
            raise BudgetSpent

    def consider(self, images: Tensor | None, loss: Callable[[Tensor], Tensor]) -> None:
        """Take over another stage's images if they are better by this search's own ``loss``."""
        if images is None:
            return
        self._allowance.meter.count()
        images = images.clamp(0, 1)
        value = float(loss(images).detach())
        if value < self.loss:
            self.loss, self.images = value, images


def _value_and_slope(loss: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    # On return the graph is gone, and the next one finds its memory warm.
    value = loss(images)
    (slope,) = torch.autograd.grad(value, images)
    return value.detach(), slope


def descend_lbfgs(loss: Callable[[Tensor], Tensor], start: Tensor, allowance: Allowance) -> Search:
    """Minimise ``loss`` from ``start`` by L-BFGS (history 100, strong Wolfe line search).

    There is no box: clamping inside the search would break the line search's slopes.

    Raises:
        FloatingPointError: the loss is not finite at the start.
    """
    images = start.detach().clone().requires_grad_()
    search = Search(allowance, ends_on_plateau=True)
    optimizer = torch.optim.LBFGS(
        [images],
        # The search's own count ends it.
        max_iter=_NO_LIMIT,
        max_eval=_NO_LIMIT,
        history_size=100,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )

    def closure() -> Tensor:
        value, images.grad = _value_and_slope(loss, images)
        search.record(value, images)
        return value

    with suppress(BudgetSpent):
        optimizer.step(closure)
    return search


def descend_signed_adam(
    loss: Callable[[Tensor], Tensor], start: Tensor, lr: float, allowance: Allowance
) -> Search:
    """Minimise ``loss`` over images in [0, 1] by Adam on the gradient's sign.

    The rate falls from ``lr`` to a hundredth of it along half a cosine (Geiping et al., 2020,
    section 4, with steps there).

    Raises:
        FloatingPointError: the loss is not finite at the start.
    """
    images = start.detach().clamp(0, 1).requires_grad_()
    search = Search(allowance)
    first, second, steps = torch.zeros_like(start), torch.zeros_like(start), torch.tensor(0.0)
    with suppress(BudgetSpent):
        while True:
            rate = lr * (0.01 + 0.99 * (1 + math.cos(math.pi * allowance.progress)) / 2)
            value, slope = _value_and_slope(loss, images)
            search.record(value, images)
            with torch.no_grad():
                # Beside a small network the class around this function costs a tenth.
                adam(
                    [images],
                    [slope.sign()],
                    [first],
                    [second],
                    max_exp_avg_sqs=[],
                    state_steps=[steps],
                    foreach=False,
                    amsgrad=False,
                    beta1=0.9,
                    beta2=0.999,
                    lr=rate,
                    weight_decay=0.0,
                    eps=1e-8,
                    maximize=False,
                )
                images.clamp_(0, 1)
    return search
