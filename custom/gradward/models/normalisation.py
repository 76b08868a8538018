"""Networks without BatchNorm, for training that must keep the images of a batch apart."""

from __future__ import annotations

import math

from torch import nn

# As many as divide a layer's channels.
GROUPS = 8
NORMS = ("batch", "group")


def group_norm(channels: int) -> nn.GroupNorm:
    """Return GroupNorm (Wu and He 2018, arXiv 1803.08494) with up to 8 groups."""
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)


def normalise(model: nn.Module, norm: str) -> nn.Module:
    """Replace every BatchNorm of an image network by GroupNorm if ``norm`` asks for it, in place.

    MONAI's ResNet takes a ``norm`` of its own and gives it to the first layer only (1.6.1).

    Args:
        model: with its initial weights.
        norm: ``"batch"`` leaves the model as it is; ``"group"``.

    Raises:
        ValueError: another ``norm``.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
    if norm == "batch":
        return model
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, group_norm(child.num_features))
    return model
