"""What a curious server sees of one client: the global state it sent and the update it got."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradward.batchnorm import BATCHNORM_BUFFERS, has_statistics, is_batchnorm_buffer
from gradward.training import State

# Counters that went through float32 arithmetic are off by rounding; more is no counter.
COUNTER_TOLERANCE = 1e-3
MAX_STEPS = 2**31


class ObservationError(ValueError):
    """The given states cannot be a global state and an update of this model.

    The message names the first offending tensor and what was expected, never a value of it.
    """


class AttackRefused(RuntimeError):
    """An attack cannot apply to this observation; the message says why."""


@dataclass(frozen=True)
class LayerStatistics:
    """Batch statistics of one BatchNorm layer, as its running statistics give them away.

    Attributes:
        name: of the layer in ``model.named_modules()``.
        steps: K, forwards in training mode during the local training.
        momentum: of the running statistics; None stands for the cumulative mean.
        mean: ``(C,)``, mean of the batches' means, weighted as by :func:`forward_weights`.
        var: ``(C,)``, the same mean of the batches' unbiased variances, not negative.
    """

    name: str
    steps: int
    momentum: float | None
    mean: Tensor
    var: Tensor


def forward_weights(steps: int, momentum: float | None) -> list[float]:
    """Weights, summing to 1, with which ``steps`` batches enter the running statistics.

    ``m (1-m)^(K-k) / (1-(1-m)^K)`` for the k-th of K batches with momentum m; ``1/K`` each for
    the cumulative mean (momentum None).
    """
    if momentum is None:
        return [1 / steps] * steps
    raw = [(1 - momentum) ** (steps - k) for k in range(1, steps + 1)]
    return [weight / sum(raw) for weight in raw]


@dataclass(frozen=True)
class Observation:
    """One update beside the global state that it started from, checked and taken apart.

    Attributes:
        model: own copy with the global state loaded, BatchNorm layers in training mode but for
            those that the counters show to be frozen.
        parameter_update: after - before for each parameter that trains, in the model's order.
        batch_statistics: of the BatchNorm layers whose buffers tell them, in the model's order.
        steps: K, the number of local steps, where all counters agree on it; else None.
        moved_buffers: names of buffers that local training moved, BatchNorm's aside.
    """

    model: nn.Module
    parameter_update: State
    batch_statistics: tuple[LayerStatistics, ...]
    steps: int | None
    moved_buffers: tuple[str, ...] = ()

    @property
    def has_batch_statistics(self) -> bool:
        """Whether any BatchNorm layer gives its batch statistics away."""
        return bool(self.batch_statistics)

    def to(self, device: torch.device | str) -> Observation:
        """Return a copy on ``device``."""
        return self._with(device=device)

    def double(self) -> Observation:
        """Return a copy in double precision."""
        return self._with(dtype=torch.float64)

    def _with(self, **where: Any) -> Observation:
        return replace(
            self,
            model=copy.deepcopy(self.model).to(**where),
            parameter_update={k: v.to(**where) for k, v in self.parameter_update.items()},
            batch_statistics=tuple(
                replace(layer, mean=layer.mean.to(**where), var=layer.var.to(**where))
                for layer in self.batch_statistics
            ),
        )

    @classmethod
    def from_update(
        cls, model: nn.Module, global_state: Mapping[str, Any], update: Mapping[str, Any]
    ) -> Observation:
        """Check both states against ``model`` and read what they tell.

        Args:
            model: gives the architecture; it is copied, not changed.
            global_state: tensors or arrays by name, as the server sent them.
            update: after - before, by name, of tensors or arrays. BatchNorm buffers may be
                missing (withheld); parameters may not.

        Raises:
            ObservationError: names, shapes or values that no local training can give.
        """
        own = copy.deepcopy(model).cpu().train()
        reference = own.state_dict()
        before = _checked_state(global_state, reference, "the global state", reference)
        # Non-BatchNorm buffers may be withheld too: no attack reads them.
        required = {
            name: reference[name] for name, _ in own.named_parameters() if name in reference
        }
        change = _checked_state(update, reference, "the update", required)
        if not any(bool(change[name].any()) for name in required):
            raise ObservationError("the update is zero in every parameter: nothing was trained")
        own.load_state_dict(
            {name: value.to(reference[name].dtype) for name, value in before.items()}
        )

        norms = {name: m for name, m in own.named_modules() if has_statistics(m)}
        counts = {name: _count(change, name) for name in norms}
        layers = tuple(
            layer
            for name, module in norms.items()
            if (layer := _layer_statistics(name, module, counts[name], before, change))
        )
        known = {count for count in counts.values() if count}
        if known:
            # A layer that stood still while others counted is frozen. If all stand still, the
            # buffers were more likely withheld from the update than frozen in training.
            moved = {layer.name for layer in layers}
            for name, module in norms.items():
                if counts[name] == 0 and name not in moved:
                    module.eval()
        return cls(
            model=own,
            parameter_update={
                name: change[name].to(parameter.dtype)
                for name, parameter in own.named_parameters()
                if parameter.requires_grad
            },
            batch_statistics=layers,
            steps=known.pop() if len(known) == 1 else None,
            moved_buffers=tuple(
                name
                for name, _ in own.named_buffers()
                if not is_batchnorm_buffer(name) and name in change and bool(change[name].any())
            ),
        )


def _checked_state(
    state: Mapping[str, Any],
    reference: Mapping[str, Tensor],
    what: str,
    required: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return CPU float64 copies in the model's order, or refuse."""
    if not state:
        raise ObservationError(f"{what} is empty")
    for name in state:
        if name not in reference:
            raise ObservationError(f"{what} has {name!r}, which the model does not know")
    checked = {}
    for name, expected in reference.items():
        if name not in state:
            if name in required:
                raise ObservationError(f"{what} lacks {name!r}, {tuple(expected.shape)} expected")
            continue
        try:
            value = torch.as_tensor(state[name]).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            raise ObservationError(f"{what}: {name!r} is not a numeric array") from None
        # Scalars come back from some serialisers as arrays of one element.
        if expected.ndim == 0 and value.numel() == 1:
            value = value.reshape(())
        if value.shape != expected.shape or value.is_complex():
            raise ObservationError(
                f"{what}: {name!r} must be real {tuple(expected.shape)}, "
                f"got {value.dtype} {tuple(value.shape)}"
            )
        if not bool(torch.isfinite(value).all()):
            raise ObservationError(f"{what}: {name!r} has values that are not finite")
        checked[name] = value.double()
    return checked


def _count(change: Mapping[str, Tensor], layer: str) -> int | None:
    """Return K of one layer; None where its counter is missing."""
    name = f"{layer}.{BATCHNORM_BUFFERS[2]}"
    if name not in change:
        return None
    value = float(change[name])
    count = round(value)
    if abs(value - count) > COUNTER_TOLERANCE or not 0 <= count < MAX_STEPS:
        raise ObservationError(f"the update: {name!r} must be a whole number of steps, 0 or more")
    return count


def _layer_statistics(
    name: str,
    module: nn.Module,
    steps: int | None,
    before: Mapping[str, Tensor],
    change: Mapping[str, Tensor],
) -> LayerStatistics | None:
    """Solve the running statistics' recursion for the batches' weighted mean.

    Exact for any K: ``(r_K - (1-m)^K r_0) / (1 - (1-m)^K)``, or cumulative
    ``((N0+K) r_K - N0 r_0) / K``; written for the change ``r_K - r_0``, which loses fewer digits.
    """
    names = [f"{name}.{buffer}" for buffer in BATCHNORM_BUFFERS[:2]]
    if not steps or any(key not in change for key in names):
        return None
    if not any(bool(change[key].any()) for key in names):
        return None
    momentum: Any = module.momentum
    if momentum is None:
        start = float(before[f"{name}.{BATCHNORM_BUFFERS[2]}"])
        if not math.isclose(start, round(start), abs_tol=COUNTER_TOLERANCE) or start < 0:
            raise ObservationError(
                f"the global state: {name}.{BATCHNORM_BUFFERS[2]} must be a whole number"
            )
        gain = (round(start) + steps) / steps
    elif momentum == 0:
        return None
    else:
        gain = 1 / (1 - (1 - momentum) ** steps)
    dtype = next(module.buffers()).dtype
    mean, var = (before[key] + gain * change[key] for key in names)
    # Noise in the update, or rounding in a channel that is constant, can push it below zero.
    return LayerStatistics(name, steps, momentum, mean.to(dtype), var.clamp_min(0).to(dtype))
