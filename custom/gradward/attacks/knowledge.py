"""What an attacker is told, finds out, or does without."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

Source = Literal["given", "inferred", "lacked"]


@dataclass(frozen=True)
class Knowledge:
    """For each fact, whether the attack was given it, inferred it from the update, or lacked it.

    Attributes:
        labels: of the client's images.
        learning_rate: of its local training.
        batch_size: of its local training.
        batch_order: which images shared a batch, and in which order batches came.
        prior: an image that looks like the client's on average.
        local_steps: number of optimiser steps.
        public_images: single images like the client's, to learn a prior from or to infer labels by.

    Raises:
        ValueError: any other word.
    """

    labels: Source
    learning_rate: Source
    batch_size: Source
    batch_order: Source
    prior: Source
    local_steps: Source
    public_images: Source = "lacked"

    def __post_init__(self) -> None:
        """Keep the three words apart from free text: reports compare them."""
        for name, value in asdict(self).items():
            if value not in get_args(Source):
                raise ValueError(f"{name} must be one of {get_args(Source)}, got {value!r}")

    def to_dict(self) -> dict[str, str]:
        """Return it as JSON values."""
        return asdict(self)
