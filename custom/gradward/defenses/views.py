"""What a perturbed site trains on: frozen views of its images, or fresh draws of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

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


class FrozenViews:
    """The same perturbed picture of each image, however often it is asked for."""

    def __init__(self, pictures: Tensor, labels: Tensor) -> None:
        """Args: perturbed pictures ``(N, C, H, W)`` and ``(N,)`` int64."""
        self._pictures, self._labels = pictures, labels

    def __len__(self) -> int:
        return len(self._pictures)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the perturbed pictures at ``indices``."""
        index = list(indices)
        return Batch(self._pictures[index], self._labels[index], perturbed=True)


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
