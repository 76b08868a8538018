"""Model states between NVFlare's messages and torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, MetaKey, from_shareable
from nvflare.apis.shareable import Shareable
from torch import Tensor, nn

from gradward.attacks.observation import MAX_STEPS
from gradward.batchnorm import BATCHNORM_BUFFERS
from gradward.training import State


class MessageError(ValueError):
    """A message that is not what the task says it should be."""


def read_dxo(shareable: Shareable, *kinds: str) -> DXO:
    """Return the message's DXO, which must be of one of ``kinds``.

    Raises:
        MessageError: it has none, or one of another kind.
    """
    try:
        dxo = from_shareable(shareable)
    except (TypeError, ValueError) as error:
        raise MessageError(f"the message holds no data object: {error}") from None
    if dxo.data_kind not in kinds:
        raise MessageError(
            f"expected a data object of kind {' or '.join(kinds)}, got {dxo.data_kind}"
        )
    return dxo


def stated_steps(dxo: DXO) -> int | None:
    """Return how many local steps an update says it took; None where it says nothing.

    Whatever is no count becomes 0, which is none either: who needs the number tells that it cannot
    be, and nobody has to handle, or repeat, what a client may write there.
    """
    value = dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND)
    if value is None:
        return None
    # Scripts state a float, or a scalar of numpy's, for a weight in the mean.
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if not is_number or isinstance(value, bool) or not 0 < value < MAX_STEPS:
        return 0
    return int(value) if value == int(value) else 0


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


def local_change(received: Mapping[str, Any], before: State, *, is_whole_model: bool) -> State:
    """Return what one local training changed, after - before.

    The mean of integer counters is a fraction, and a script that loads it with ``load_state_dict``
    cuts it off: it counts on from less than it was sent. Its number of steps is taken from where it
    started, not from what was sent.

    Args:
        received: tensors or arrays by name, as a site sent them.
        before: the global state that it was sent.
        is_whole_model: whether ``received`` are the trained weights and not their change.

    Returns:
        CPU tensors by name; what ``before`` lacks or has in another size comes back unchanged.
    """
    change: State = {}
    for name, value in received.items():
        tensor = as_tensor(value)
        # By number: some serialisers make an array of one element of a scalar.
        if name not in before or before[name].numel() != tensor.numel():
            change[name] = tensor
            continue
        start = before[name].to(tensor.dtype).reshape(tensor.shape)
        after = tensor if is_whole_model else tensor + start
        if name.rpartition(".")[2] == BATCHNORM_BUFFERS[2] and _is_whole(after):
            start = start.trunc()
        elif not is_whole_model:
            after, start = tensor, torch.zeros_like(start)
        change[name] = after - start
    return change


def _is_whole(counter: Tensor) -> bool:
    return bool(torch.isclose(counter, counter.round(), rtol=0, atol=1e-3).all())


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
