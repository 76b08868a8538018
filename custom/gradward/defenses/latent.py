"""The autoencoder's latent, centred and whitened class by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradward.defenses.autoencoder import ConvAutoencoder
from gradward.defenses.class_mixture import ClassMixture, fit_mixture, rotate

_CHUNK = 256
_FLOOR = 1e-4


class TooFewImages(ValueError):
    """A class has too few images for statistics of its own; the message holds no count."""


class ClassLatent:
    """Coordinates ``w`` in which each class is centred and white: standard normal, more or less.

    The latent is centred on its class's mean, projected on the principal axes that hold 99 % of
    the variance within classes, and whitened by the class's own covariance, which is shrunk towards
    the one pooled over classes. A standard normal ``w`` decodes to a fresh picture of the class.

    With ``conditional=False`` all images make one class: the label is not needed to come back, and
    the mean does not give it away.

    Args:
        autoencoder: fitted; its weights are frozen here.
        mean: ``(K, L)`` mean latent of each class; K is 1 when unconditional.
        basis: ``(r, L)`` principal axes, each divided by its standard deviation.
        whiten: ``(K, r, r)`` symmetric, from principal coordinates to white ones.
        mixture: of each class in white coordinates, for draws that stand for no image.
    """

    def __init__(
        self,
        autoencoder: ConvAutoencoder,
        mean: Tensor,
        basis: Tensor,
        whiten: Tensor,
        mixture: ClassMixture,
    ) -> None:
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.mean, self.basis, self.whiten, self.mixture = mean, basis, whiten, mixture
        self._colour = torch.linalg.inv(whiten.double()).float()
        # Rows of `basis` are orthogonal: the way back is their transpose over squared norms.
        self._back = basis / basis.square().sum(1, keepdim=True)

    @property
    def dimensions(self) -> int:
        """Number of white coordinates, ``r``."""
        return len(self.basis)

    @property
    def conditional(self) -> bool:
        """Whether each class has statistics of its own."""
        return len(self.mean) > 1

    @torch.no_grad()
    def white(self, images: Tensor, labels: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` images of classes ``(N,)`` to coordinates ``(N, r)``."""
        parts = []
        for picture, row in zip(
            images.split(_CHUNK), self._rows(labels).split(_CHUNK), strict=True
        ):
            centred = self.autoencoder.encode(picture).flatten(1) - self.mean[row]
            parts.append(rotate(centred @ self.basis.T, self.whiten, row))
        return torch.cat(parts) if parts else images.new_zeros(0, self.dimensions)

    def decode(self, w: Tensor, labels: Tensor) -> Tensor:
        """Map coordinates ``(N, r)`` to images in [0, 1]; differentiable in ``w``."""
        row = self._rows(labels)
        latents = rotate(w, self._colour, row) @ self._back + self.mean[row]
        return self.autoencoder.decode(latents.reshape(-1, *self.autoencoder.latent_shape))

    def draw(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a fresh image of each class in ``labels``; return images in [0, 1] and labels."""
        w = self.mixture.draw(self._rows(labels), generator)
        with torch.no_grad():
            return self.decode(w, labels), labels

    def to_state(self) -> dict[str, Any]:
        """Return tensors and plain values from which :meth:`from_state` builds the same."""
        return {
            "channels": self.autoencoder.channels,
            "image_size": list(self.autoencoder.image_size),
            "autoencoder": dict(self.autoencoder.state_dict()),
            "mean": self.mean,
            "basis": self.basis,
            "whiten": self.whiten,
            "mixture": self.mixture.to_state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ClassLatent:
        """Build from what :meth:`to_state` returned.

        Raises:
            KeyError, RuntimeError: something is missing or does not fit.
        """
        height, width = state["image_size"]
        autoencoder = ConvAutoencoder(state["channels"], (height, width))
        autoencoder.load_state_dict(state["autoencoder"])
        mixture = ClassMixture.from_state(state["mixture"])
        return cls(autoencoder, state["mean"], state["basis"], state["whiten"], mixture)

    def _rows(self, labels: Tensor) -> Tensor:
        return labels if self.conditional else torch.zeros_like(labels)


def require_enough(labels: Tensor, num_classes: int, least: int, *, conditional: bool) -> None:
    """Make sure that every class (all images, if unconditional) has ``least`` images.

    Raises:
        TooFewImages: otherwise; the message holds no count, for counts are data.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    if int(counts.min() if conditional else counts.sum()) < least:
        raise TooFewImages(
            f"class statistics need at least {least} images of every class; take them from public "
            "images (fitted_on 'public'), or declare more of those"
        )


def fit_latent(
    autoencoder: ConvAutoencoder,
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    conditional: bool = True,
    least: int = 10,
    energy: float = 0.99,
    shrinkage: float = 0.3,
) -> ClassLatent:
    """Fit the class statistics of :class:`ClassLatent`.

    Args:
        autoencoder: fitted.
        images: ``(N, C, H, W)`` float32 in [0, 1].
        labels: ``(N,)`` int64 below ``num_classes``.
        num_classes: of the task.
        conditional: False treats all images as one class.
        least: images that each class must have.
        energy: share of the variance within classes that the axes must hold.
        shrinkage: weight of the pooled covariance in each class's own.

    Raises:
        TooFewImages: a class has fewer than ``least`` images.
    """
    require_enough(labels, num_classes, least, conditional=conditional)
    rows = labels if conditional else torch.zeros_like(labels)
    classes = num_classes if conditional else 1
    with torch.no_grad():
        latents = torch.cat([autoencoder.encode(part).flatten(1) for part in images.split(_CHUNK)])
    z = latents.double()
    mean = torch.stack([z[rows == k].mean(0) for k in range(classes)])
    centred = z - mean[rows]
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(z))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    held = values.cumsum(0) / values.sum()
    r = min(int((held < energy).sum()) + 1, len(z) - classes)
    basis = vectors[:, :r].T / values[:r].sqrt()[:, None]
    principal = centred @ basis.T
    whiten = torch.stack([_whitening(principal[rows == k], shrinkage) for k in range(classes)])
    mixture = fit_mixture(rotate(principal, whiten, rows), rows, classes)
    return ClassLatent(autoencoder, mean.float(), basis.float(), whiten.float(), mixture)


def _whitening(own: Tensor, shrinkage: float) -> Tensor:
    """Inverse root of a class's covariance, in coordinates where the pooled one is the identity."""
    covariance = (1 - shrinkage) * own.T @ own / len(own)
    covariance += shrinkage * torch.eye(own.shape[1], dtype=own.dtype)
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(_FLOOR).rsqrt()) @ vectors.T
