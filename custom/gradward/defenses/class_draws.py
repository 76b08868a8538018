"""What a certified site trains on: moved and mixed public pictures with the release's labels."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradward.data.images import ImageSet
from gradward.defenses.class_features import FeatureSettings, PublicFeatures
from gradward.defenses.class_pictures import Movement, mixed, moved_at_random


@dataclass(frozen=True)
class ReleaseSettings:
    """How a class release is made.

    Attributes:
        clip: L2 norm of a patient's record at most; that of one image is seldom above 0.7.
        copies: moved copies of each image, which share its record.
        ridge: of the public classifier.
        mixing: share of draws that blend two pictures.
        sharpness: factor between scores and logits of the labels that draws get.
        movement: of copies and draws.
        features: of the public features.

    Raises:
        ValueError: with the offending value.
    """

    clip: float = 0.5
    copies: int = 6
    ridge: float = 1e-3
    mixing: float = 0.5
    sharpness: float = 16.0
    movement: Movement = field(default_factory=Movement)
    features: FeatureSettings = field(default_factory=FeatureSettings)

    def __post_init__(self) -> None:
        """Check the numbers that the certificate and the labels hang on."""
        for name in ("clip", "ridge", "sharpness"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and positive, got {getattr(self, name)}")
        if self.copies < 0:
            raise ValueError(f"copies must not be negative, got {self.copies}")
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"mixing must lie in [0, 1], got {self.mixing}")


@dataclass(frozen=True)
class Certificate:
    """What one release may cost a patient, who is added to or removed from the site.

    Attributes:
        epsilon: of (epsilon, delta)-differential privacy.
        delta: likewise.
        sensitivity: the most a patient's record can change the sum, in L2 norm.
        sigma: standard deviation of the noise on each coordinate of the sum.
    """

    epsilon: float
    delta: float
    sensitivity: float
    sigma: float


class ClassRelease:
    """Draws labelled pictures from a site's release (:mod:`gradward.defenses.class_release`).

    Attributes:
        certificate: of the release, and of everything that is made of it.
        release_id: name of the released content, 64 hexadecimal digits; of noised values only.
    """

    def __init__(
        self,
        certificate: Certificate,
        settings: ReleaseSettings,
        features: PublicFeatures,
        weights: Tensor,
        public: ImageSet,
    ) -> None:
        """Args: ``weights`` ``(D, K)`` from features to scores; ``public`` is drawn from."""
        self.certificate, self.settings = certificate, settings
        self._features, self._weights, self._public = features, weights, public
        counts = torch.bincount(public.labels, minlength=weights.shape[1])
        # Every class as often as any other; a class without public pictures is never drawn.
        self._chances = 1 / counts[public.labels].float()
        self.release_id = _digest(certificate, weights)

    @property
    def epsilon(self) -> float:
        """Of the certificate."""
        return self.certificate.epsilon

    @property
    def delta(self) -> float:
        """Of the certificate."""
        return self.certificate.delta

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise."""
        return self.certificate.sigma

    @property
    def sensitivity(self) -> float:
        """The most that one patient can change the noised sum, in L2 norm."""
        return self.certificate.sensitivity

    def scores(self, images: Tensor) -> Tensor:
        """Return class probabilities ``(N, K)`` of ``images`` ``(N, C, H, W)``."""
        probabilities: Tensor = (
            self.settings.sharpness * self._features(images) @ self._weights
        ).softmax(1)
        return probabilities

    def draw(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw as many labelled pictures as there are ``labels``.

        The labels themselves are a site's data, which nothing released covers: only their number is
        looked at. The pictures are public, moved and mixed; their labels are the release's.

        Args:
            labels: ``(N,)``.
            generator: CPU generator.

        Returns:
            Images ``(N, C, H, W)`` in [0, 1] and class probabilities ``(N, K)``, as
            ``torch.nn.functional.cross_entropy`` takes them.
        """
        chosen = torch.multinomial(
            self._chances, len(labels), replacement=True, generator=generator
        )
        pictures = moved_at_random(self._public.images[chosen], self.settings.movement, generator)
        pictures = mixed(pictures, self.settings.mixing, generator)
        return pictures, self.scores(pictures)

    def to_state(self) -> dict[str, Any]:
        """Return tensors and plain values, which ``torch.load(weights_only=True)`` can read."""
        return {
            "certificate": asdict(self.certificate),
            "settings": asdict(self.settings),
            "features": self._features.to_state(),
            "weights": self._weights,
            "public": {"images": self._public.images, "labels": self._public.labels},
            "release_id": self.release_id,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ClassRelease:
        """Build what :meth:`to_state` described.

        Raises:
            KeyError, RuntimeError, TypeError: it is no such state.
            ValueError: likewise, or its certificate is not the one that it was released under.
        """
        settings = dict(state["settings"])
        settings["movement"] = Movement(**settings["movement"])
        settings["features"] = FeatureSettings(**settings["features"])
        found = cls(
            Certificate(**state["certificate"]),
            ReleaseSettings(**settings),
            PublicFeatures.from_state(state["features"]),
            state["weights"],
            ImageSet(state["public"]["images"], state["public"]["labels"]),
        )
        if found.release_id != state["release_id"]:
            raise ValueError("the release is not the one that was stored")
        return found


def _digest(certificate: Certificate, weights: Tensor) -> str:
    digest = hashlib.sha256(repr(sorted(asdict(certificate).items())).encode())
    digest.update(weights.contiguous().numpy().tobytes())
    return digest.hexdigest()
