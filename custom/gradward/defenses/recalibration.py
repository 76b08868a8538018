"""BatchNorm statistics from public images, for a server whose sites withhold theirs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradward.batchnorm import has_statistics
from gradward.data import ImageSet

# Enough for BatchNorm's statistics: .956 balanced accuracy on PneumoniaMNIST, against .945 with the
# sites' own buffers and .50 with the initial ones.
IMAGES = 64


def keeps_statistics(model: nn.Module) -> bool:
    """Whether the model has BatchNorm layers with running statistics."""
    return any(has_statistics(module) for module in model.modules())


def recalibrate(model: nn.Module, images: Tensor, batch_size: int = IMAGES) -> None:
    """Replace BatchNorm's running statistics by those of ``images``, in place.

    The statistics are the cumulative average over batches of equal size, with BatchNorm as in
    training (each layer sees what the layers before it normalised by the batch) and everything
    else, dropout included, as in evaluation. Modes and momenta stay.

    Args:
        model: with the parameters that the statistics shall fit.
        images: ``(N, C, H, W)`` float32 in [0, 1].
        batch_size: at most so many images at once; fewer images than there are batches are left
            out, so that the batches are equal.

    Raises:
        ValueError: batches of fewer than 2 images, which may have no variance.
    """
    batches = -(-len(images) // batch_size)
    size = len(images) // max(1, batches)
    if size < 2:
        raise ValueError(
            f"recalibration needs batches of at least 2 images, got {len(images)} images in "
            f"{batches} batches"
        )
    layers = [module for module in model.modules() if has_statistics(module)]
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    model.eval()
    for layer in layers:
        layer.reset_running_stats()  # type: ignore[operator]
        layer.momentum = None  # type: ignore[assignment]
        layer.train()
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            for start in range(0, batches * size, size):
                model(images[start : start + size].to(device))
    finally:
        for layer in layers:
            layer.momentum = momenta[layer]
        for module, mode in modes.items():
            module.training = mode


def calibration_images(images: ImageSet, count: int = IMAGES) -> Tensor:
    """Return about ``count`` images, equally many of each class that is there.

    Public images rarely have the sites' mix of classes, and statistics follow the mix. On the
    embedded patches (78 % positive, the sites' 55 %) balancing lifted balanced accuracy from .72
    to .86, mean of five seeds; the sites' own statistics gave .81. A class with too few images is
    used over again.

    Args:
        images: public ones.
        count: how many, at least one a class.
    """
    classes = images.labels.unique().tolist()
    each = max(1, count // max(1, len(classes)))
    chosen = [
        index[torch.arange(each) % len(index)]
        for index in ((images.labels == label).nonzero().flatten() for label in classes)
    ]
    return images.images[torch.cat(chosen)] if chosen else images.images
