"""How well a network classifies: the utility that a defence may cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from gradward.training import TrainingAborted


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, balanced accuracy and area under the ROC curve.

    Args:
        logits: ``(N, K)`` with ``N >= 1`` and ``K >= 2``.
        labels: ``(N,)`` integers in [0, K).

    Returns:
        All in [0, 1]: ``accuracy``; ``balanced_accuracy``, the mean recall of the classes present;
        ``auc``, for ``K = 2`` of the probability of class 1, otherwise the mean over the classes
        present of one class against the rest. Ties count one half. Without ``auc`` where only one
        class is present.

    Raises:
        ValueError: shapes or labels do not fit.
        FloatingPointError: logits are not finite.
    """
    if logits.ndim != 2 or not len(logits) or logits.shape[1] < 2:
        raise ValueError(f"logits must be (N, K), N at least 1, K at least 2, got {logits.shape}")
    n_classes = logits.shape[1]
    if labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise ValueError(f"labels must be integers ({len(logits)},), got {labels.shape}")
    if not (labels.min() >= 0 and labels.max() < n_classes):
        raise ValueError(f"labels must lie in [0, {n_classes})")
    if not torch.isfinite(logits).all():
        raise FloatingPointError("the network's logits are not finite")
    correct = logits.argmax(1) == labels
    present = labels.unique().tolist()
    recalls = [correct[labels == label].double().mean().item() for label in present]
    metrics = {
        "accuracy": correct.double().mean().item(),
        "balanced_accuracy": sum(recalls) / len(recalls),
    }
    if len(present) > 1:
        classes = [1] if n_classes == 2 else present
        areas = [_auc(_log_odds(logits, label), labels == label) for label in classes]
        metrics["auc"] = sum(areas) / len(areas)
    return metrics


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int = 64,
    aborted: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Classification metrics of ``model`` in evaluation mode, on the model's device.

    Every submodule's mode is restored, also after an error.

    Args:
        model: maps ``(B, C, H, W)`` to logits ``(B, K)``.
        images: ``(N, C, H, W)`` float32, on any device.
        labels: ``(N,)`` int64.
        batch_size: images in a forward pass.
        aborted: asked before every batch.

    Returns:
        As :func:`classification_metrics`.

    Raises:
        ValueError, FloatingPointError: as :func:`classification_metrics`; no images.
        TrainingAborted: ``aborted`` said so.
    """
    if not len(images):
        raise ValueError("there are no images to evaluate on")
    device = next((parameter.device for parameter in model.parameters()), images.device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    logits = []
    try:
        with torch.no_grad():
            for batch in images.split(batch_size):
                if aborted():
                    raise TrainingAborted("evaluation was aborted")
                logits.append(model(batch.to(device)).cpu())
    finally:
        for module, training in modes.items():
            module.training = training
    return classification_metrics(torch.cat(logits), labels.cpu())


def _log_odds(logits: Tensor, label: int) -> Tensor:
    """Log odds of one class: ordered as its probability, but never rounded to a tie at 0 or 1."""
    logits = logits.double()
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return logits[:, label] - others.logsumexp(1)


def _auc(scores: Tensor, positive: Tensor) -> float:
    """Mann-Whitney form of the area under the ROC curve, from mid-ranks."""
    ranks = rankdata(scores.cpu().numpy())
    mask = positive.cpu().numpy()
    n_positive = int(np.count_nonzero(mask))
    n_pairs = n_positive * (len(mask) - n_positive)
    return float((ranks[mask].sum() - n_positive * (n_positive + 1) / 2) / n_pairs)
