"""Model states between NVFlare's messages and torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, from_shareable
from nvflare.apis.shareable import Shareable
from torch import Tensor, nn

from gradward.training import State


class MessageError(ValueError):
    """A message that is not what the task says it should be."""


def read_dxo(shareable: Shareable, kind: str) -> DXO:
    """Return the message's DXO, which must be of ``kind``.

    Raises:
        MessageError: it has none, or one of another kind.
    """
    try:
        dxo = from_shareable(shareable)
    except (TypeError, ValueError) as error:
        raise MessageError(f"the message holds no data object: {error}") from None
    if dxo.data_kind != kind:
        raise MessageError(f"expected a data object of kind {kind}, got {dxo.data_kind}")
    return dxo


def load_global_state(model: nn.Module, data: Mapping[str, Any]) -> State:
    """Load received global weights into ``model`` and return them as tensors.

    Averaging turns integer counters into fractions: they are rounded to the model's own type.

    Raises:
        MessageError: the weights are those of another model; says what differs.
    """
    own = model.state_dict()
    foreign, missing = sorted(set(data) - set(own)), sorted(set(own) - set(data))
    if foreign or missing:
        raise MessageError(
            f"the received weights belong to another model: {len(missing)} entries are missing "
            f"(first: {missing[:1]}), {len(foreign)} are unknown (first: {foreign[:1]})"
        )
    state: State = {}
    for name, reference in own.items():
        value = as_tensor(data[name])
        if value.shape != reference.shape:
            raise MessageError(
                f"{name} has shape {tuple(value.shape)} in the received weights, "
                f"{tuple(reference.shape)} in this job's model"
            )
        if not reference.is_floating_point():
            value = value.round()
        state[name] = value.to(reference.dtype)
    model.load_state_dict(state)
    return {name: value.clone() for name, value in state.items()}


def as_tensor(value: Any) -> Tensor:
    """Return a CPU tensor of a received array; integers become float64 so that they can round."""
    tensor = (
        value.detach().cpu()
        if isinstance(value, Tensor)
        else torch.from_numpy(np.array(value, copy=True))
    )
    return tensor if tensor.is_floating_point() else tensor.to(torch.float64)


def as_arrays(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return a state as NVFlare sends it."""
    return {name: value.detach().cpu().numpy() for name, value in state.items()}


def copy_arrays(data: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Copy the arrays of a state."""
    return {name: np.array(value, copy=True) for name, value in data.items()}
