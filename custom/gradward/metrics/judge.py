"""Attacker accuracy: can a classifier tell the class of what was reconstructed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradward.metrics.classification import evaluate
from gradward.models import build_model
from gradward.training import RawImages, TrainingSettings, train_locally

JUDGE_TRAINING = TrainingSettings(batch_size=64, lr=2e-3, epochs=12, optimizer="adam")


def train_judge(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    generator: torch.Generator,
    settings: TrainingSettings = JUDGE_TRAINING,
) -> nn.Module:
    """Train a small network (``"bn_cnn"``) to classify real pictures.

    Rarer classes are repeated up to the size of the greatest, so that the judge leans less to the
    common ones where a picture shows little.

    Args:
        images: ``(N, C, H, W)`` float32 in [0, 1], real, of a declared public set.
        labels: ``(N,)`` int64.
        num_classes: at least 2.
        generator: CPU generator for initial weights and order.
        settings: of the training.

    Returns:
        The network, in evaluation mode, its parameters fixed.

    Raises:
        ValueError, FloatingPointError: as :func:`gradward.training.train_locally`.
    """
    judge = build_model(
        "bn_cnn",
        in_channels=images.shape[1],
        num_classes=num_classes,
        image_size=list(images.shape[2:]),
        seed=int(torch.randint(2**31, (1,), generator=generator)),
    )
    index = _balanced(labels, generator)
    train_locally(judge, RawImages(images[index], labels[index]), settings, generator)
    return judge.eval().requires_grad_(False)


def attacker_accuracy(judge: nn.Module, reconstructions: Tensor, labels: Tensor) -> float:
    """Share of the reconstructions whose true class the judge names, averaged over the classes.

    A class counts alike whether it has few victims or many: naming the commonest class always is
    worth one in the number of classes.

    Args:
        judge: from :func:`train_judge`.
        reconstructions: ``(N, C, H, W)`` float32 in [0, 1].
        labels: ``(N,)`` int64, true classes of the images that were sought.

    Returns:
        In [0, 1].

    Raises:
        ValueError: as :func:`gradward.metrics.classification.evaluate`.
    """
    return evaluate(judge, reconstructions, labels)["balanced_accuracy"]


def _balanced(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Positions in which every class present appears as often as the greatest one."""
    most = int(labels.bincount().max()) if len(labels) else 0
    positions = []
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        order = own[torch.randperm(len(own), generator=generator)]
        positions.append(order.repeat(-(-most // len(own)))[:most])
    return torch.cat(positions) if positions else labels.new_zeros(0)
