"""Features in which a linear classifier does well, learned from public images alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradward.data.images import ImageSet
from gradward.defenses.autoencoder import Progress, no_progress
from gradward.defenses.class_pictures import Movement, moved_at_random
from gradward.defenses.seeding import seeded
from gradward.defenses.teacher import Teacher

_BATCH = 50
_LR = 2e-3
_CHUNK = 250
# Pictures that are wider are shrunk before patches are taken: texture below that is noise.
_WIDEST = 56
_PATCH = 7
_PATCHES = 20000
_POOLED = 4
_THRESHOLD = 0.8
# The constant feature, which carries the classes' frequencies.
_BIAS = 0.3


@dataclass(frozen=True)
class FeatureSettings:
    """What the features are made of.

    Attributes:
        networks: number of small networks whose last layers are taken.
        steps: optimiser steps of each.
        filters: patches of public images that serve as filters.
        dimensions: principal axes kept of either kind, at most.
        whitening: 0 leaves the axes' variances as they are, 1 makes them equal. What is noised
            later is noised alike in all directions.
        augmentations: moved copies of the public images, as many images in all, that the axes are
            fitted on.
    """

    networks: int = 3
    steps: int = 600
    filters: int = 128
    dimensions: int = 256
    whitening: float = 0.75
    augmentations: int = 5000


class PatchFeatures(nn.Module):
    """Responses to whitened public patches, rectified and pooled to 4 x 4 (Coates and Ng 2012).

    Args:
        channels: of the images.
        filters: number of patches; each gives two features a place, of either sign.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(filters, channels, _PATCH, _PATCH))
        self.register_buffer("bias", torch.zeros(filters))

    def fit(self, images: Tensor, generator: torch.Generator) -> None:
        """Take filters from ``images`` ``(N, C, H, W)``."""
        width = self.weight[0].numel()
        patches = F.unfold(_shrunk(images), _PATCH).transpose(1, 2).reshape(-1, width)
        chosen = torch.randperm(len(patches), generator=generator)[: 4 * _PATCHES]
        patches = patches[chosen]
        contrast = patches.std(1)
        # Flat patches, such as a black margin, would be most of them.
        patches = patches[contrast > 0.5 * contrast.mean()][:_PATCHES]
        mean = patches.mean(0)
        values, axes = torch.linalg.eigh(torch.cov((patches - mean).T))
        whiten = axes @ torch.diag((values + 0.03 * values.mean()).rsqrt()) @ axes.T
        rows = torch.randint(len(patches), (len(self.bias),), generator=generator)
        filters = F.normalize((patches[rows] - mean) @ whiten, dim=1) @ whiten
        self.weight.copy_(filters.view_as(self.weight))
        self.bias.copy_(-(filters @ mean))

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, 32 * filters)``, not negative."""
        response = F.conv2d(_shrunk(images), self.weight, self.bias, stride=2, padding=3)
        both = torch.cat([F.relu(response - _THRESHOLD), F.relu(-response - _THRESHOLD)], dim=1)
        # The square root keeps one strong response from outweighing all others.
        return F.adaptive_avg_pool2d(both, _POOLED).flatten(1).sqrt()


class PublicFeatures(nn.Module):
    """Unit-norm features of images; build them with :func:`fit_features`.

    Two blocks of equal weight, the last layers of small networks and :class:`PatchFeatures`, each
    on its principal axes and partly whitened, and a constant.

    Args:
        channels: of the images.
        image_size: height and width, pixels.
        num_classes: of the task.
        settings: of both blocks.
        dimensions: axes kept of the two blocks.
    """

    mean: list[Tensor]

    def __init__(
        self,
        channels: int,
        image_size: tuple[int, int],
        num_classes: int,
        settings: FeatureSettings,
        dimensions: tuple[int, int],
    ) -> None:
        super().__init__()
        self.form = (channels, image_size, num_classes)
        self.settings = settings
        self.networks = nn.ModuleList(
            Teacher(channels, num_classes, image_size) for _ in range(settings.networks)
        )
        self.patches = PatchFeatures(channels, settings.filters)
        blank = torch.zeros(1, channels, *image_size)
        widths = (
            sum(network(blank)[0].shape[1] for network in self.networks.eval()),
            2 * _POOLED**2 * settings.filters,
        )
        for block, (width, kept) in enumerate(zip(widths, dimensions, strict=True)):
            self.register_buffer(f"mean_{block}", torch.zeros(width))
            self.register_buffer(f"axes_{block}", torch.zeros(width, kept))
        self.eval()

    @property
    def dimensions(self) -> int:
        """Number of features, the constant included."""
        return sum(self.get_buffer(f"axes_{block}").shape[1] for block in (0, 1)) + 1

    def blocks(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return both blocks before their axes, ``(N, F1)`` and ``(N, F2)``."""
        deep = torch.cat([network(images)[0] for network in self.networks], dim=1)
        return deep, self.patches(images)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to features ``(N, dimensions)`` of norm 1."""
        found = []
        for chunk in images.split(_CHUNK):
            parts = [
                F.normalize((raw - self.get_buffer(f"mean_{b}")) @ self.get_buffer(f"axes_{b}"))
                for b, raw in enumerate(self.blocks(chunk))
            ]
            constant = torch.full((len(chunk), 1), _BIAS * len(parts) ** 0.5)
            found.append(F.normalize(torch.cat([*parts, constant], dim=1)))
        return torch.cat(found)

    def to_state(self) -> dict[str, Any]:
        """Return tensors and plain values, which ``torch.load(weights_only=True)`` can read."""
        channels, image_size, num_classes = self.form
        return {
            "form": [channels, list(image_size), num_classes],
            "settings": dict(vars(self.settings)),
            "weights": self.state_dict(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> PublicFeatures:
        """Build what :meth:`to_state` described.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: it is no such state.
        """
        channels, (height, width), num_classes = state["form"]
        kept = [state["weights"][f"axes_{block}"].shape[1] for block in (0, 1)]
        features = cls(
            channels,
            (height, width),
            num_classes,
            FeatureSettings(**state["settings"]),
            (kept[0], kept[1]),
        )
        features.load_state_dict(state["weights"])
        return features


def fit_features(
    public: ImageSet,
    num_classes: int,
    settings: FeatureSettings,
    movement: Movement,
    generator: torch.Generator,
    progress: Progress = no_progress,
) -> PublicFeatures:
    """Learn features from public images; nothing of a site may be among them.

    Args:
        public: labelled public images.
        num_classes: of the task.
        settings: what the features are made of.
        movement: augmentation.
        generator: everything random.
        progress: told ``"features"`` and the share done.

    Returns:
        Features in evaluation mode, without gradients.
    """
    images = public.images
    channels, height, width = images.shape[1:]
    copies = max(1, settings.augmentations // len(images))
    kept = min(settings.dimensions, len(images) * copies // 4)
    with seeded(generator):
        features = PublicFeatures(channels, (height, width), num_classes, settings, (kept, kept))
    for number, network in enumerate(features.networks):
        progress("features", number / (len(features.networks) + 1))
        _train(network, public, settings.steps, movement, generator)
    features.patches.fit(images, generator)
    features.requires_grad_(False)
    many = torch.cat(
        [images, *(moved_at_random(images, movement, generator) for _ in range(copies - 1))]
    )
    progress("features", len(features.networks) / (len(features.networks) + 1))
    with torch.no_grad():
        both = zip(*(features.blocks(chunk) for chunk in many.split(_CHUNK)), strict=True)
        for block, parts in enumerate(both):
            raw = torch.cat(parts)
            mean = raw.mean(0)
            with seeded(generator):
                _, singular, axes = torch.svd_lowrank(raw - mean, q=kept + 10, niter=2)
            spread = (singular[:kept] / len(raw) ** 0.5).clamp_min(1e-6)
            features.get_buffer(f"mean_{block}").copy_(mean)
            features.get_buffer(f"axes_{block}").copy_(axes[:, :kept] / spread**settings.whitening)
    progress("features", 1.0)
    return features


def _train(
    network: nn.Module,
    public: ImageSet,
    steps: int,
    movement: Movement,
    generator: torch.Generator,
) -> None:
    """Train one network to tell the classes of moved public images apart."""
    optimizer = torch.optim.Adam(network.parameters(), lr=_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, _LR / 20)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(public), (_BATCH,), generator=generator)
        optimizer.zero_grad()
        pictures = moved_at_random(public.images[chosen], movement, generator)
        F.cross_entropy(network(pictures)[1], public.labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    network.eval()


def _shrunk(images: Tensor) -> Tensor:
    """Average pictures down until no side is longer than 56 pixels."""
    factor = -(-max(images.shape[2:]) // _WIDEST)
    return F.avg_pool2d(images, factor) if factor > 1 else images
