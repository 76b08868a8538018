"""The small networks on which gradient inversion is usually shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gradward.models.normalisation import group_norm

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": group_norm,
    "none": lambda channels: nn.Identity(),
}


class _BodyAndHead(nn.Module):
    """A convolutional body, flattened into one linear layer."""

    def __init__(
        self, body: nn.Sequential, in_channels: int, num_classes: int, image_size: Sequence[int]
    ) -> None:
        super().__init__()
        self.body = body
        # In evaluation mode the trial run leaves BatchNorm's statistics alone.
        with torch.no_grad():
            features = body.eval()(torch.zeros(1, in_channels, *image_size)).numel()
        body.train()
        self.fc = nn.Linear(features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to logits ``(B, K)``."""
        logits: Tensor = self.fc(self.body(images).flatten(1))
        return logits


class LeNet(_BodyAndHead):
    """The sigmoid network of Zhu et al. 2019 (Deep Leakage from Gradients, arXiv 1906.08935).

    Three 5x5 convolutions of 12 channels with strides 2, 2 and 1, one linear layer, and all
    weights and biases drawn from U(-0.5, 0.5), as in the authors' published code.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        channels = in_channels
        for stride in (2, 2, 1):
            layers += [nn.Conv2d(channels, 12, 5, stride=stride, padding=2), nn.Sigmoid()]
            channels = 12
        super().__init__(nn.Sequential(*layers), in_channels, num_classes, image_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)


class BatchNormCNN(_BodyAndHead):
    """Three 3x3 convolutions (strides 1, 2, 2), each with BatchNorm and ReLU, one linear layer.

    Without BatchNorm it is the network for training that must keep the images of a batch apart,
    as DP-SGD does.

    Args:
        in_channels: of the images.
        num_classes: number of logits.
        image_size: height and width, in pixels.
        width: channels of the first convolution; the next have twice and four times as many.
        norm: ``"batch"``, ``"group"`` (up to 8 groups) or ``"none"``.

    Raises:
        ValueError: another ``norm``.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: Sequence[int],
        width: int = 16,
        norm: str = "batch",
    ) -> None:
        if norm not in _NORMS:
            raise ValueError(f"norm must be one of {tuple(_NORMS)}, got {norm!r}")
        layers: list[nn.Module] = []
        channels = in_channels
        for wide, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            layers += [
                nn.Conv2d(channels, wide, 3, stride=stride, padding=1),
                _NORMS[norm](wide),
                nn.ReLU(),
            ]
            channels = wide
        super().__init__(nn.Sequential(*layers), in_channels, num_classes, image_size)
