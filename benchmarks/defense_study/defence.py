"""What a defence is to the study: how a site trains, what it sends, and what an attacker holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradward.data import ImageSet
from gradward.defenses.dp_sgd import plan_round
from gradward.models import build_model
from gradward.training import Batch, BatchSource, RawImages, State, TrainingSettings

from .federation import Effort, local_update
from .protocol import Trial


class DefenceRefused(RuntimeError):
    """A defence declines to train with this setting on this set; the message says why."""


@dataclass(frozen=True)
class Case:
    """What an arm is built for.

    Attributes:
        trial: the division.
        setting: of the arm.
        effort: quick or full.
        scratch: folder for what settings of one trial can share.
    """

    trial: Trial
    setting: str
    effort: Effort
    scratch: Path


class View(Protocol):
    """What the oracle attacker holds of a defence that changes the images."""

    def released(self, positions: Tensor) -> Tensor:
        """Return the exact pictures that stand for these images of the first site."""

    def imitate(self, images: ImageSet, generator: torch.Generator) -> Tensor:
        """Return what the defence would make of the attacker's own images, with fresh noise."""


@dataclass
class Defence:
    """One defence with one setting, ready to train.

    Attributes:
        settings: of the sites' local training.
        sources: what each site trains on.
        send: maps site and update to what leaves it; the site is None for one that trains a single
            round, as a victim does.
        serve: what the server does to the averaged model.
        options: of the network.
        noise_std: what an attacker takes the noise on an update to be, from the update.
        view: where the images themselves are changed; None where they are trained on as they are.
        facts: what the defence states of itself.
    """

    settings: TrainingSettings
    sources: Sequence[BatchSource]
    send: Callable[[int | None, State], State] = lambda site, update: update
    serve: Callable[[nn.Module], None] = lambda model: None
    options: Mapping[str, Any] = field(default_factory=dict)
    noise_std: Callable[[State], float] = lambda update: 0.0
    view: View | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def model(self, trial: Trial) -> nn.Module:
        """Build the network that this defence trains, always from the same initial weights."""
        return build_model(
            "bn_cnn",
            in_channels=trial.public.images.shape[1],
            num_classes=trial.num_classes,
            image_size=list(trial.public.images.shape[2:]),
            seed=trial.seed,
            **self.options,
        )

    @property
    def noise_multiplier(self) -> float:
        """Of DP-SGD in the first site's whole job."""
        return plan_round(self.settings, len(self.sources[0])).noise_multiplier

    def site_update(
        self, model: nn.Module, site: int, state: State, generator: torch.Generator
    ) -> State:
        """Return what a site sends after one round."""
        update = local_update(model, state, self.sources[site], self.settings, generator)
        return self.send(site, update)

    def one_step_update(
        self,
        model: nn.Module,
        state: State,
        source: BatchSource,
        generator: torch.Generator,
    ) -> State:
        """Return what leaves a site whose round is one step on all images of ``source``."""
        settings = one_step(self.settings, len(source))
        if settings.dp_sgd is not None and settings.dp_sgd.epsilon is not None:
            # The noise of the whole job, not that of a job of this one step.
            noise = self.noise_multiplier
            private = replace(settings.dp_sgd, epsilon=None, rounds=None, noise_multiplier=noise)
            settings = replace(settings, dp_sgd=private)
        return self.send(None, local_update(model, state, source, settings, generator))


@dataclass
class Part:
    """Some positions of a source, as a source."""

    whole: BatchSource
    positions: Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the whole's batch at these of the positions."""
        return self.whole.batch([self.positions[i] for i in indices])


def raw_sources(trial: Trial) -> list[BatchSource]:
    """Return the sites' images as they are."""
    return [RawImages(site.images, site.labels) for site in trial.sites]


def one_step(settings: TrainingSettings, n_images: int) -> TrainingSettings:
    """Return the settings of a client whose round is one step on ``n_images``.

    BiDO compares images with each other: with one image its loss is the plain one.
    """
    bido = settings.bido if n_images > 1 else None
    return replace(settings, batch_size=n_images, steps=1, bido=bido)
