"""What a class looks like, for fresh draws: a mixture of Gaussians in its white coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

_MOST_COMPONENTS = 6
_IMAGES_PER_COMPONENT = 8
# Where clusters are looked for: the axes of least variance are mostly noise.
_CLUSTERED_AXES = 20
_ITERATIONS = 30
_SHRINKAGE = 0.3
_FLOOR = 1e-4


@dataclass(frozen=True)
class ClassMixture:
    """A mixture for each class; its components differ in mean, and share the class's covariance.

    One Gaussian a class blurs the ways in which a class can look; a few components draw pictures
    that train better (docs/defense.md has the figures).

    Attributes:
        weights: ``(K, M)``, rows sum to 1; a class with fewer components has zeros.
        means: ``(K, M, r)``.
        roots: ``(K, r, r)`` symmetric roots of the covariance within components.
    """

    weights: Tensor
    means: Tensor
    roots: Tensor

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return coordinates ``(N, r)`` of one fresh draw for each class in ``rows``."""
        noise = torch.randn(len(rows), self.means.shape[2], generator=generator)
        if not len(rows):
            return noise
        chosen = torch.multinomial(self.weights[rows], 1, generator=generator)[:, 0]
        return self.means[rows, chosen] + rotate(noise, self.roots, rows)

    def to_state(self) -> dict[str, Tensor]:
        """Return what :meth:`from_state` takes."""
        return {"weights": self.weights, "means": self.means, "roots": self.roots}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ClassMixture:
        """Build from what :meth:`to_state` returned.

        Raises:
            KeyError: something is missing.
        """
        return cls(state["weights"], state["means"], state["roots"])


def fit_mixture(w: Tensor, rows: Tensor, classes: int) -> ClassMixture:
    """Fit by k-means, and the covariance to what is left; the same data give the same mixture.

    Args:
        w: ``(N, r)`` white coordinates.
        rows: ``(N,)`` class of each, below ``classes``; every class has at least one.
        classes: their number.
    """
    points = w.double()
    weights = torch.zeros(classes, _MOST_COMPONENTS, dtype=torch.double)
    means = torch.zeros(classes, _MOST_COMPONENTS, w.shape[1], dtype=torch.double)
    roots = []
    for k in range(classes):
        own = points[rows == k]
        component = _clusters(own)
        counts = torch.bincount(component, minlength=_MOST_COMPONENTS)
        weights[k] = counts / len(own)
        means[k].index_add_(0, component, own)
        means[k] /= counts.clamp_min(1)[:, None]
        roots.append(_root(own - means[k, component]))
    return ClassMixture(weights.float(), means.float(), torch.stack(roots).float())


def rotate(vectors: Tensor, matrices: Tensor, rows: Tensor) -> Tensor:
    """Apply to each of the vectors ``(N, r)`` the symmetric matrix of its row, of ``(K, r, r)``."""
    if len(matrices) == 1:
        return vectors @ matrices[0]
    # Class by class: a matrix for every vector would be gathered at r times the memory.
    order = rows.argsort(stable=True)
    present, counts = rows[order].unique_consecutive(return_counts=True)
    parts = [
        part @ matrices[k]
        for part, k in zip(vectors[order].split(counts.tolist()), present.tolist(), strict=True)
    ]
    return torch.cat(parts)[order.argsort()] if parts else vectors


def _clusters(points: Tensor) -> Tensor:
    """Return the cluster ``(N,)`` of each point; as many as there are images for."""
    wanted = min(_MOST_COMPONENTS, len(points) // _IMAGES_PER_COMPONENT)
    if wanted < 2:
        return torch.zeros(len(points), dtype=torch.int64)
    # The seed is fixed, for a mixture is part of what a perturber's name stands for.
    _, found = kmeans2(
        points[:, :_CLUSTERED_AXES].numpy(), wanted, iter=_ITERATIONS, minit="++", rng=0
    )
    return torch.from_numpy(found).long()


def _root(centred: Tensor) -> Tensor:
    """Root of a covariance that is shrunk towards its own diagonal, for there are few images."""
    covariance = (1 - _SHRINKAGE) * centred.T @ centred / len(centred)
    covariance += _SHRINKAGE * torch.diag(centred.square().mean(0))
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(_FLOOR).sqrt()) @ vectors.T
