"""Global models trained on the larger sites' images, kept in a folder outside the repository."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gradward.models import build_model
from gradward.training import RawImages, TrainingSettings, train_locally

from .cases import Case
from .pictures import Pictures, load_pictures, seeded

CACHE = Path.home() / ".cache" / "gradward" / "benchmarks"
# As in jobs/cxr_high_risk, its rounds as epochs over the pooled images.
TRAINING = TrainingSettings(lr=0.05, batch_size=8, epochs=7)
# Convolutions do not know a picture's size: larger ones go on from this size's weights.
BASE_SIDE = 64
FURTHER = TrainingSettings(lr=0.05, batch_size=8, epochs=1)


def fresh_model(case: Case, pictures: Pictures, seed: int) -> nn.Module:
    """Build the case's network with the seed's initial weights."""
    return build_model(
        case.model,
        in_channels=1,
        num_classes=case.classes or pictures.num_classes,
        image_size=[case.side, case.side],
        seed=seed,
        **case.options,
    )


def global_model(case: Case, seed: int, cache: Path = CACHE) -> nn.Module:
    """Return the model that the client was sent: fresh, or trained and cached."""
    model = fresh_model(case, load_pictures(case.side), seed)
    return train_cached(model, case.model, case.side, seed, cache) if case.trained else model


def train_cached(model: nn.Module, name: str, side: int, seed: int, cache: Path) -> nn.Module:
    """Train ``model`` in place on pictures of ``side`` pixels, or load what was trained before.

    Args:
        model: with the seed's initial weights.
        name: for the file, with the number of its weights.
        side: at :data:`BASE_SIDE` or below it is trained from scratch.
        seed: of the order of batches.
        cache: folder of the trained states.
    """
    pictures = load_pictures(side)
    size = sum(parameter.numel() for parameter in model.parameters())
    file = cache / f"{pictures.name}-{name}-{size}-{side}-seed{seed}.pt"
    if not file.exists():
        settings = TRAINING
        if side > BASE_SIDE:
            train_cached(model, name, BASE_SIDE, seed, cache)
            settings = FURTHER
        source = RawImages(pictures.training.images, pictures.training.labels)
        train_locally(model, source, settings, seeded(seed, side))
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model
