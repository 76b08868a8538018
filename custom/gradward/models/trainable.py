"""A rehearsal of the first training step, before a federation starts."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from gradward.models.factory import ModelError


def check_trainable(
    model: nn.Module, image_size: Sequence[int], in_channels: int, batch_size: int
) -> None:
    """Make sure that ``model`` can take one training-mode forward pass.

    Where the feature map has shrunk to one pixel and the batch holds one image, BatchNorm sees
    one value a channel, whose variance is zero, and torch refuses: DenseNet121 at 32 pixels and
    ResNet18 at 16 pixels are such cases. The pass runs on a copy, on the model's device; the
    model and the CPU's random generator stay as they were.

    Args:
        model: to be checked.
        image_size: height and width, in pixels.
        in_channels: channels of the images.
        batch_size: of the smallest batch that will be seen; a last batch may hold one image.

    Raises:
        ModelError: the pass failed; the message names model, size, batch and remedy.
    """
    trial = copy.deepcopy(model).train()
    weight = next(model.parameters(), torch.zeros(()))
    images = torch.full((batch_size, in_channels, *image_size), 0.5).to(weight)
    size = "x".join(str(side) for side in image_size)
    case = (
        f"{type(model).__name__} cannot train on {in_channels}-channel {size} images in batches "
        f"of {batch_size}"
    )
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial(images)
    except torch.OutOfMemoryError:
        raise
    except ValueError as error:  # how torch's normalisation layers refuse a single value
        raise ModelError(
            f"{case}: {error}. Use larger images or batches of at least {max(2, batch_size)}."
        ) from error
    except RuntimeError as error:  # how its other layers refuse a shape
        raise ModelError(f"{case}: {error}. Use larger images or another model.") from error
