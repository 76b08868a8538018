"""What a client's batches give at the global weights, as if these never moved between its steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradward.attacks.head import InputRecorder, momentum_gains
from gradward.attacks.observation import Observation
from gradward.attacks.training_copy import StatisticsTap, training_copy
from gradward.losses import logit_slopes
from gradward.training import TrainingSettings


@dataclass(frozen=True)
class Pass:
    """A batch's features ``(B, F)``, logits ``(B, K)`` and batch statistics by layer."""

    features: Tensor
    logits: Tensor
    statistics: list[tuple[str, Tensor, Tensor]]


class FrozenClient:
    """Forward passes of a client's batches and the change that they give to its last layer.

    Exact for one step; for more, the weights' drift between steps is ignored.

    Args:
        observation: the update, of whose BatchNorm layers the statistics are collected.
        settings: of the client.
        batches: for each local step, the indices of its images.
        layer: name of the last linear layer.
    """

    def __init__(
        self,
        observation: Observation,
        settings: TrainingSettings,
        batches: list[list[int]],
        layer: str,
    ):
        self._settings, self._batches = settings, batches
        self._gains = momentum_gains(len(batches), settings.momentum)
        self._model = training_copy(observation.model).requires_grad_(False)
        self._recorder = InputRecorder(self._model, layer)
        self._tap = StatisticsTap(self._model, [one.name for one in observation.batch_statistics])

    def passes(self, images: Tensor) -> list[Pass]:
        """Return what each step's batch of ``images`` ``(n_images, C, H, W)`` gives."""
        seen: dict[tuple[int, ...], Pass] = {}
        with self._tap:
            for batch in self._batches:
                # With frozen weights a batch that comes again gives the same.
                if (key := tuple(batch)) not in seen:
                    self._tap.calls = []
                    logits = self._model(images[batch])
                    seen[key] = Pass(self._recorder.input, logits, self._tap.calls)
        return [seen[tuple(batch)] for batch in self._batches]

    def head_change(self, passes: list[Pass], labels: Tensor) -> list[Tensor]:
        """Return the change of the last layer's weight and bias, given labels ``(n_images,)``."""
        weight, bias = [], []
        for gain, batch, item in zip(self._gains, self._batches, passes, strict=True):
            slopes = logit_slopes(self._settings.loss, item.logits, labels[batch])
            slopes = -self._settings.lr * gain * slopes
            weight.append(slopes.T @ item.features)
            bias.append(slopes.sum(dim=0))
        return [torch.stack(weight).sum(dim=0), torch.stack(bias).sum(dim=0)]
