"""What a perturbed site trains on: draws from its images' views, or from their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gradward.defenses.channel import GatedChannel
from gradward.training import Batch


class ClassModel(Protocol):
    """Statistics of classes from which pictures are drawn."""

    def draw(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw one picture a label.

        Args:
            labels: ``(N,)`` int64.
            generator: CPU generator.

        Returns:
            Images ``(N, C, H, W)`` in [0, 1] and their labels: ``(N,)`` int64, or probabilities
            ``(N, K)``. A model that covers the labels too chooses its own.
        """


class ViewDraws:
    """At every request another picture that an image's frozen view allows.

    All are post-processing of the one view: however many epochs are trained, they tell no more of
    the image than it does. A fresh picture trains better than the same one again and again.
    """

    def __init__(
        self, channel: GatedChannel, views: Tensor, labels: Tensor, generator: torch.Generator
    ) -> None:
        """Args: what the views ``(N, r)`` went through, their ``(N,)`` int64 labels, and noise."""
        self._channel, self._views = channel, views
        self._labels, self._generator = labels, generator

    def __len__(self) -> int:
        return len(self._views)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return one picture for each of ``indices``."""
        index = list(indices)
        labels = self._labels[index]
        w = self._channel.redraw(self._views[index], self._generator)
        with torch.no_grad():
            return Batch(self._channel.picture(w, labels), labels, perturbed=True)


class ClassDraws:
    """A fresh picture of the class at every request; no picture is that of an image."""

    def __init__(self, model: ClassModel, labels: Tensor, generator: torch.Generator) -> None:
        """Args: the class model, ``(N,)`` int64 labels of the site, and what draws."""
        self._model, self._labels, self._generator = model, labels, generator

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return one fresh draw for each of ``indices``."""
        images, labels = self._model.draw(self._labels[list(indices)], self._generator)
        return Batch(images, labels, perturbed=True)
