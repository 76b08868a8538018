"""One victim of a case: the update that contenders get, and the truth that they do not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gradward.attacks import Observation
from gradward.attacks.control import withhold_alike
from gradward.batchnorm import is_batchnorm_buffer
from gradward.training import (
    RawImages,
    State,
    TrainingSettings,
    state_copy,
    state_difference,
    train_locally,
)

from .cases import Case
from .pictures import load_pictures, seeded
from .trained import CACHE, global_model

PRIOR_NOISE = 0.02


@dataclass(frozen=True)
class Update:
    """What a server sees of a client, and the labels in the order of its batches.

    Attributes:
        observation: the update beside the global state.
        labels: ``(n,)`` int64, batch after batch.
    """

    observation: Observation
    labels: Tensor


@dataclass(frozen=True)
class Instance:
    """One group of victims under one seed.

    Attributes:
        case: that it belongs to.
        seed: of fresh or trained weights and of the attacks.
        update: of the victims.
        control: of as many public images, as the wrong update.
        truth: ``(n, 1, H, W)``, batch after batch.
        prior: ``(1, H, W)``.
        public: ``(N, 1, H, W)``, for attacks that learn a prior.
    """

    case: Case
    seed: int
    update: Update
    control: Update
    truth: Tensor
    prior: Tensor
    public: Tensor

    def start(self) -> Tensor | None:
        """Return ``(n, 1, H, W)`` where a contender of another house shall begin, or None.

        The prior as it is for one image; slightly different copies for more, which would never
        part.
        """
        if self.case.start != "prior":
            return None
        copies = self.prior.expand(self.case.n_images, *self.prior.shape).clone()
        if self.case.n_images > 1:
            copies += PRIOR_NOISE * torch.randn(copies.shape, generator=seeded(self.seed))
        return copies


def make_instance(case: Case, picture: int, seed: int, cache: Path = CACHE) -> Instance:
    """Let a client train on the ``picture``-th group of victims.

    Raises:
        IndexError: there are not so many groups.
    """
    pictures = load_pictures(case.side)
    images, labels = pictures.victims_of(picture, case.n_images)
    model = global_model(case, seed, cache)
    if case.classes is not None:
        labels = torch.arange(case.n_images) % case.classes
    drawn = partial(seeded, seed, case.n_images)
    update, order = train_client(model, images, labels, case.settings, drawn())
    public = pictures.control.subset(torch.arange(case.n_images) % len(pictures.control))
    wrong, order_wrong = train_client(model, public.images, public.labels, case.settings, drawn())
    if case.withheld:
        update = {name: v for name, v in update.items() if not is_batchnorm_buffer(name)}
    wrong = withhold_alike(wrong, update)
    return Instance(
        case,
        seed,
        Update(Observation.from_update(model, state_copy(model), update), labels[order]),
        Update(
            Observation.from_update(model, state_copy(model), wrong), public.labels[order_wrong]
        ),
        images[order],
        pictures.prior,
        pictures.public,
    )


def train_client(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: TrainingSettings,
    generator: torch.Generator,
) -> tuple[State, Tensor]:
    """Return the update of one epoch, and the images' order in it; the model stays as it is."""
    before = state_copy(model)
    run = train_locally(model, RawImages(images, labels), settings, generator)
    update = state_difference(state_copy(model), before)
    model.load_state_dict(before)
    return update, torch.tensor(run.images_seen)
