"""One update beside everything that an attack on it may use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from gradward.attacks.knowledge import Source
from gradward.attacks.observation import AttackRefused, Observation
from gradward.training import TrainingSettings

Start = Literal["prior", "random"]


def check_start(start: object, learned_prior: float = 0.0) -> None:
    """Refuse an option that names no start, or one that a learned prior would not heed.

    Raises:
        ValueError: with what it names.
    """
    if start not in get_args(Start):
        raise ValueError(f"start must be 'prior' or 'random', got {start!r}")
    if learned_prior and start != "prior":
        raise ValueError(f"start must be 'prior' with a learned prior, got {start!r}")


@dataclass(frozen=True)
class AttackCase:
    """What an attack is given; all tensors on the observation's device.

    Attributes:
        observation: the update and its global state.
        settings: of the client's local training.
        prior: ``(C, H, W)`` in [0, 1].
        n_images: how many images to reconstruct.
        batches: for each local step, the indices of the images in it, given or assumed.
        labels: ``(n_images,)`` int64, or None where they could not be had.
        no_labels_because: why they could not.
        restart: how often the attack was run before; a first run of one image has no chance in it.
        public: ``(N, C, H, W)`` in [0, 1], other images to learn from, or None where the attacker
            has none.
        batches_given: whether the attacker was told the batches.
    """

    observation: Observation
    settings: TrainingSettings
    prior: Tensor
    n_images: int
    batches: list[list[int]]
    labels: Tensor | None
    restart: int = 0
    public: Tensor | None = None
    batches_given: bool = False
    no_labels_because: str = ""

    @property
    def images_per_pass(self) -> int:
        """Images that one simulated local training processes."""
        return sum(len(batch) for batch in self.batches)

    @property
    def batch_order(self) -> Source:
        """Whether the order of the batches is known; a single one, however often, has none."""
        if self.batches_given:
            return "given"
        return "inferred" if len({tuple(batch) for batch in self.batches}) == 1 else "lacked"

    def known_labels(self) -> Tensor:
        """Return the labels.

        Raises:
            AttackRefused: there are none; with the reason and the remedy.
        """
        if self.labels is None:
            why = f" ({self.no_labels_because})" if self.no_labels_because else ""
            raise AttackRefused(
                f"the labels are not known{why}; labels given to the attacker would do"
            )
        return self.labels

    def double(self) -> AttackCase:
        """Return the case in double precision."""
        return replace(
            self,
            observation=self.observation.double(),
            prior=self.prior.double(),
            public=None if self.public is None else self.public.double(),
        )

    def starting_images(
        self, start: Start, prior_noise: float, generator: torch.Generator
    ) -> Tensor:
        """Return ``(n_images, C, H, W)`` to search from.

        Args:
            start: ``"prior"``, or ``"random"`` for pixels uniform in [0, 1].
            prior_noise: of :meth:`copies_of_prior`.
            generator: of the CPU.
        """
        if start == "prior":
            return self.copies_of_prior(prior_noise, generator)
        return torch.rand((self.n_images, *self.prior.shape), generator=generator).to(self.prior)

    def copies_of_prior(self, noise: float, generator: torch.Generator) -> Tensor:
        """Return ``(n_images, C, H, W)``, the prior with Gaussian noise where it takes some.

        Identical copies would get identical gradients and never part; neither would restarts.

        Args:
            noise: its standard deviation.
            generator: of the CPU.
        """
        images = self.prior.expand(self.n_images, *self.prior.shape).clone()
        if self.n_images > 1 or self.restart:
            draw = torch.randn(images.shape, generator=generator, dtype=torch.float32)
            images += noise * draw.to(images)
        return images

    def limit(self, max_images: int, max_steps: int) -> None:
        """Refuse a case beyond the limits.

        Raises:
            AttackRefused: with the number that is too large.
        """
        if self.n_images > max_images:
            raise AttackRefused(f"{self.n_images} images are more than the limit of {max_images}")
        if len(self.batches) > max_steps:
            raise AttackRefused(
                f"{len(self.batches)} local steps are more than the limit of {max_steps}"
            )
