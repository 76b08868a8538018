"""The wrong-update control: what an attack makes of an update that holds none of the client.

Only what exceeds the control was leaked. It is never another site's update, whose reconstruction
would carry one hospital's patient to another.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradward.batchnorm import is_batchnorm_buffer
from gradward.randomness import own_randomness
from gradward.training import (
    RawImages,
    State,
    TrainingSettings,
    state_copy,
    state_difference,
    train_locally,
)


def control_update(
    model: nn.Module,
    global_state: Mapping[str, Any],
    control_images: Tensor,
    control_labels: Tensor,
    settings: TrainingSettings,
    n_images: int,
    seed: int,
    batches: Sequence[Sequence[int]] | None = None,
) -> State:
    """Return the wrong-update control: a real local training on declared public images.

    Args:
        model: gives the architecture; it is not changed.
        global_state: where the client started, tensors or arrays by name.
        control_images: ``(N, C, H, W)`` float32; used in a drawn order, or with ``batches`` in
            their own, so that given labels fit them; over again if too few.
        control_labels: ``(N,)`` int64.
        settings: of the client.
        n_images: as many as the client is taken to have.
        seed: of the draw, of the batches and of dropout's masks.
        batches: for each step, the indices of its images, where the attacker is given the
            client's: the control then trains in the same, or its attacks would be told wrong ones.

    Returns:
        after - before of all parameters and buffers.

    Raises:
        ValueError: no images, or a batch that BatchNorm cannot train on.
        FloatingPointError: the training diverged.
    """
    if not len(control_images):
        raise ValueError("there are no control images")
    own = copy.deepcopy(model).cpu()
    own.load_state_dict({name: torch.as_tensor(value) for name, value in global_state.items()})
    before = state_copy(own)
    generator = torch.Generator().manual_seed(seed)
    count = len(control_images)
    order = torch.randperm(count, generator=generator) if batches is None else torch.arange(count)
    chosen = order[torch.arange(n_images) % count]
    # Dropout draws from the process's generators.
    with own_randomness(seed, "cpu"):
        train_locally(
            own,
            RawImages(control_images[chosen], control_labels[chosen]),
            settings,
            generator,
            # Whoever makes the control may know its noise: nothing of it is secret.
            secret=generator,
            batches=None if batches is None else [list(batch) for batch in batches],
        )
    return state_difference(state_copy(own), before)


def withhold_alike(control: State, update: Mapping[str, Any]) -> State:
    """Withhold from the control the BatchNorm buffers that the client's update withholds.

    Otherwise the control would be attacked with more than the update gives away.
    """
    return {
        name: value
        for name, value in control.items()
        if not is_batchnorm_buffer(name)
        or (name in update and bool(torch.as_tensor(update[name]).any()))
    }
