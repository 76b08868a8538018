"""A network that GradWard does not have, by ``"attack_study.networks:mlp"``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn


def mlp(in_channels: int, num_classes: int, image_size: Sequence[int]) -> nn.Sequential:
    """Return a perceptron with one hidden layer of 256 ReLUs, in the form that breaching reads."""
    pixels = in_channels * math.prod(image_size)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 256), nn.ReLU(), nn.Linear(256, num_classes)
    )
