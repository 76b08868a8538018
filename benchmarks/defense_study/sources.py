"""Where the baselines train from, and what their attacker holds of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradward.data import ImageSet
from gradward.defenses.input import ErasedImages, NoisyImages
from gradward.training import Batch, RawImages, State, TrainingSettings

from .defence import Defence
from .federation import Effort, local_update, site_settings
from .networks import shifted
from .protocol import Trial


class ShiftedImages:
    """Images that are moved a little, anew for every batch.

    Args:
        images: which.
        generator: CPU generator of the shifts.
    """

    def __init__(self, images: ImageSet, generator: torch.Generator) -> None:
        self._images, self._generator = images, generator

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the images at ``indices``, shifted."""
        moved = shifted(self._images.subset(list(indices)), self._generator)
        return Batch(moved.images, moved.labels)


@dataclass
class PipelineView:
    """What input noise or erasing makes of images: one draw for each.

    A site draws anew in every epoch, and who sees ten draws averages them. That the attacker gets
    a single one favours these baselines.

    Attributes:
        trial: whose first site holds the victims.
        settings: with the noise or the erasing.
    """

    trial: Trial
    settings: TrainingSettings

    def released(self, positions: Tensor) -> Tensor:
        """Return one draw for each of these images."""
        victims = self.trial.sites[0].subset(positions)
        return self.imitate(victims, self.trial.generator("released"))

    def imitate(self, images: ImageSet, generator: torch.Generator) -> Tensor:
        """Return one draw for each image."""
        source = RawImages(images.images, images.labels)
        wrapped = (
            NoisyImages(source, self.settings.input_noise, generator)
            if self.settings.input_noise
            else ErasedImages(source, self.settings.random_erasing, generator)
        )
        return wrapped.batch(range(len(images))).images


class RawView:
    """No defence: the images themselves.

    Args:
        trial: whose first site holds the victims.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def released(self, positions: Tensor) -> Tensor:
        """Return the images as they are."""
        return self._trial.sites[0].images[positions]

    def imitate(self, images: ImageSet, generator: torch.Generator) -> Tensor:
        """Return the images as they are."""
        return images.images


def train_start(trial: Trial, defence: Defence, effort: Effort) -> State:
    """Return the state that every arm with this network starts from: trained on public images."""
    model = defence.model(trial)
    source = ShiftedImages(trial.public, trial.generator("start shift"))
    settings = replace(site_settings(trial), steps=None, epochs=effort.start_epochs)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    update = local_update(model, start, source, settings, trial.generator("start"))
    return {name: value + update[name] for name, value in start.items()}
