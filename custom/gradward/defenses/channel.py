"""The Gaussian channel through which every perturbed picture goes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradward.defenses.latent import ClassLatent
from gradward.defenses.rate import clip_whitened, gate_rate

_ROUNDING = 1e-6


@dataclass(frozen=True)
class GatedChannel:
    """``w' = a w + sqrt(1 - a^2) eps`` in the coordinates of a class latent, and its decoder.

    Attributes:
        latent: what whitens and decodes.
        gate: ``a``, ``(r,)`` float32 in [0, 1).
    """

    latent: ClassLatent
    gate: Tensor

    @property
    def rate(self) -> float:
        """What one view tells of any image at most, in nats."""
        return max(0.0, float(gate_rate(self.gate.double())))

    def to_state(self) -> dict[str, Any]:
        """Return tensors and plain values from which :meth:`from_state` builds the same."""
        return {"latent": self.latent.to_state(), "gate": self.gate}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> GatedChannel:
        """Build from what :meth:`to_state` returned.

        Raises:
            KeyError, RuntimeError: something is missing or does not fit.
        """
        return cls(ClassLatent.from_state(state["latent"]), state["gate"])

    def fingerprint(self) -> str:
        """Name of everything that decides about a view but the noise, 16 hexadecimal digits."""
        state = self.latent.to_state()
        tensors: dict[str, Tensor] = {
            **{f"autoencoder.{name}": value for name, value in state["autoencoder"].items()},
            **{f"mixture.{name}": value for name, value in state["mixture"].items()},
            **{name: state[name] for name in ("mean", "basis", "whiten")},
            "gate": self.gate,
        }
        digest = hashlib.sha256()
        for name, value in sorted(tensors.items()):
            digest.update(f"{name} {tuple(value.shape)} ".encode())
            digest.update(value.detach().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def whiten(self, images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """Return the clipped coordinates ``(N, r)`` and the fraction that was clipped.

        Without the clipping the rate would hold on average at best, and not for a picture unlike
        those that the latent was fitted on.
        """
        return clip_whitened(self.latent.white(images, labels), self.gate)

    def release(self, w: Tensor, noise: Tensor) -> Tensor:
        """Return the view ``w'`` of clipped coordinates, with standard normal ``noise``."""
        return transmit(w, self.gate, noise)

    def release_fresh(self, w: Tensor, generator: torch.Generator) -> Tensor:
        """Return views with noise of the generator: for training and judging, never for a site."""
        return self.release(w, torch.randn(w.shape, generator=generator))

    def picture(self, view: Tensor, labels: Tensor) -> Tensor:
        """Decode views ``(N, r)`` to the perturbed pictures ``(N, C, H, W)``."""
        return self.latent.decode(view, labels)

    def redraw(self, view: Tensor, generator: torch.Generator) -> Tensor:
        """Draw coordinates ``(N, r)`` that views allow: ``w | w' ~ N(a w', 1 - a^2)`` for white w.

        They are made of the view and of fresh noise, so they tell of the image what the view does.
        """
        return transmit(view, self.gate, torch.randn(view.shape, generator=generator))


def transmit(w: Tensor, gate: Tensor, noise: Tensor) -> Tensor:
    """Return ``a w + sqrt(1 - a^2) eps``, differentiable in the gate."""
    return gate * w + (1 - gate.square()).sqrt() * noise


def rounded_down(gate: Tensor) -> Tensor:
    """Lower gates by more than float32 rounds, so that a budget of exactly their rate affords them.

    The rate falls by less than a thousandth where no gate is above 0.998.
    """
    return gate * (1 - _ROUNDING)
