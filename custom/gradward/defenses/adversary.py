"""The attacker who holds the exact perturbed picture, its view, and the site's perturber.

No inversion of an update can do better: the update depends on the image only through the view. It
is trained afresh, on public images that it puts through the perturber as often as it likes: the
adversary that took part in the learning of the gates is flattered by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradward.data.images import ImageSet
from gradward.defenses.adversary_networks import LatentAdversary, PictureAdversary, class_means
from gradward.defenses.channel import GatedChannel

_CHUNK = 256


@dataclass(frozen=True)
class OracleSettings:
    """How much the attacker trains.

    Attributes:
        latent_steps: of the perceptron on the view.
        picture_steps: of the U-Net; 0 leaves it out.
        batch_size: images a step.
    """

    latent_steps: int = 250
    picture_steps: int = 250
    batch_size: int = 64


@dataclass(frozen=True)
class OracleResult:
    """What the attacker got.

    Attributes:
        method: the one with the least error: ``wiener``, ``latent``, ``picture``.
        errors: mean squared error by method, over that of guessing the class mean.
        relative_mse: the least of them, at most 1: whoever is above it guesses the mean.
        reconstructions: ``(N, C, H, W)`` of the best method.
    """

    method: str
    errors: dict[str, float]
    relative_mse: float
    reconstructions: Tensor


class Oracle:
    """The trained attackers against one channel; build it with :func:`fit_oracle`."""

    def __init__(
        self,
        channel: GatedChannel,
        class_means: Tensor,
        latent: LatentAdversary,
        picture: PictureAdversary | None,
    ) -> None:
        self._channel, self.class_means = channel, class_means
        self._latent, self._picture = latent, picture

    @torch.no_grad()
    def reconstructions(self, views: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return by method what each attacker makes of views ``(N, r)`` of known classes."""
        gate = self._channel.gate
        found: dict[str, list[Tensor]] = {}
        for view, label in zip(views.split(_CHUNK), labels.split(_CHUNK), strict=True):
            guesses = {
                "wiener": self._channel.picture(gate * view, label),
                "latent": self._latent(view, label, gate),
            }
            if self._picture is not None:
                guesses["picture"] = self._picture(self._channel.picture(view, label), label)
            for name, images in guesses.items():
                found.setdefault(name, []).append(images)
        return {name: torch.cat(parts) for name, parts in found.items()}

    def attack(self, views: Tensor, victims: ImageSet) -> OracleResult:
        """Rebuild ``victims`` from their views and compare.

        Args:
            views: ``(N, r)`` as released.
            victims: the N images behind them.
        """
        truth = victims.images
        prior = float((self.class_means[victims.labels] - truth).square().mean())
        rebuilt = self.reconstructions(views, victims.labels)
        errors = {
            name: float((images - truth).square().mean()) / prior
            for name, images in rebuilt.items()
        }
        best = min(errors, key=errors.__getitem__)
        return OracleResult(best, errors, min(1.0, errors[best]), rebuilt[best])


def fit_oracle(
    channel: GatedChannel,
    images: ImageSet,
    num_classes: int,
    generator: torch.Generator,
    settings: OracleSettings | None = None,
) -> Oracle:
    """Train the attackers on images that they put through ``channel`` with fresh noise.

    Args:
        channel: the site's, known exactly.
        images: the attacker's own, none of them a victim.
        num_classes: of the task.
        generator: weights, batches and noise.
        settings: how long.

    Raises:
        ValueError: no images.
    """
    if not len(images):
        raise ValueError("an attacker needs images to learn from")
    settings = settings or OracleSettings()
    latent = LatentAdversary(channel.latent, num_classes, generator)
    w, _ = channel.whiten(images.images, images.labels)

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.randint(len(images), (settings.batch_size,), generator=generator)
        view = channel.release_fresh(w[chosen], generator)
        return view, images.labels[chosen], images.images[chosen]

    for optimizer in _annealed(latent, 1.5e-3, settings.latent_steps):
        view, labels, truth = draw()
        F.mse_loss(latent(view, labels, channel.gate), truth).backward()
        optimizer.step()
    means = class_means(images.images, images.labels, num_classes)
    picture = None
    if settings.picture_steps:
        picture = PictureAdversary(means, generator)
        for optimizer in _annealed(picture, 2e-3, settings.picture_steps):
            view, labels, truth = draw()
            with torch.no_grad():
                seen = channel.picture(view, labels)
            F.mse_loss(picture(seen, labels), truth).backward()
            optimizer.step()
        picture.eval()
    return Oracle(channel, means, latent.eval(), picture)


def _annealed(model: nn.Module, lr: float, steps: int) -> Iterator[torch.optim.Optimizer]:
    """Yield a cleared Adam ``steps`` times while its rate falls along half a cosine."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(steps):
        optimizer.zero_grad()
        yield optimizer
        schedule.step()
