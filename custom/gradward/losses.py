"""The classification losses that sites train with, and what their gradients say of labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOSSES = ("cross_entropy", "bce")
"""``"bce"`` is the binary cross entropy of each class against all others, mean over classes."""


def classification_loss(name: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of a batch, a scalar.

    Args:
        name: one of ``LOSSES``.
        logits: ``(B, K)``.
        labels: ``(B,)`` int64 classes, or ``(B, K)`` probabilities.
    """
    if name == "bce":
        return F.binary_cross_entropy_with_logits(logits, targets(labels, logits))
    return F.cross_entropy(logits, labels)


def logit_slopes(name: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient ``(B, K)`` of :func:`classification_loss` by the logits, in closed form.

    ``(softmax(z) - y) / B``; with BCE ``(sigmoid(z) - y) / (B K)``.
    """
    slopes = class_probabilities(name, logits) - targets(labels, logits)
    return slopes / (logits.numel() if name == "bce" else len(logits))


def class_probabilities(name: str, logits: Tensor) -> Tensor:
    """Return what the loss takes the logits ``(B, K)`` for: softmax, or sigmoid of each class."""
    return torch.sigmoid(logits) if name == "bce" else F.softmax(logits, dim=1)


def targets(labels: Tensor, logits: Tensor) -> Tensor:
    """Return labels as probabilities ``(B, K)`` of the logits' type."""
    if labels.ndim == 1:
        labels = F.one_hot(labels, logits.shape[1])
    return labels.to(logits)
