"""Two lines that let a training script of NVFlare's Client API train on perturbed images.

    received = flare.receive()
    images = gradward.client.perturbed_images()          # in place of the script's own data set
    ...
    flare.send(flare.FLModel(params=..., meta=images.meta(steps)))

The job's configuration names the perturbation and a
:class:`~gradward.flare.script_perturbation.ScriptPerturbation`, which does the rest in NVFlare's
own process: it makes the images before each training task and signs for the update after it.
"""

from __future__ import annotations

import os
from multiprocessing import Value
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from gradward.defenses.storage import load_private

IMAGES_VARIABLE = "GRADWARD_IMAGES"
"""Environment variable with the file of this task's images, set where the script is started."""
USED_META = "gradward_used"
STEPS_META = "NUM_STEPS_CURRENT_ROUND"


class NoPerturbedImages(RuntimeError):
    """There are none for this task; the message says what to do."""


class PerturbedImages(Dataset[tuple[Tensor, Tensor]]):
    """The images of one training task, as a data set of torch.

    An item is an image ``(C, H, W)`` float32 in [0, 1] and its label: an int64 class, or in the
    certified mode probabilities, which ``torch.nn.functional.cross_entropy`` takes as well.
    """

    def __init__(self, images: Tensor, labels: Tensor, token: str) -> None:
        """Args: ``(N, C, H, W)``, ``(N,)`` or ``(N, K)``, and the name of this set of images."""
        self._images, self._labels, self._token = images, labels, token
        # Shared with the worker processes of a data loader.
        self._used = Value("q", 0)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with self._used.get_lock():
            self._used.value += 1
        return self._images[index], self._labels[index]

    def meta(self, steps: int) -> dict[str, Any]:
        """Return what goes with the update as ``meta`` of its ``FLModel``.

        Args:
            steps: optimiser steps taken on these images, and on no others, since ``receive``.

        Raises:
            NoPerturbedImages: none of them was used.
            ValueError: no number of steps.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
        if self._used.value < 1:
            raise NoPerturbedImages("no perturbed image was used: train on these and no others")
        return {STEPS_META: steps, USED_META: {"token": self._token, "samples": self._used.value}}


def perturbed_images() -> PerturbedImages:
    """Return the images that the script trains on until it sends its update.

    Every training task has images of its own: call it after each ``flare.receive()``.

    Raises:
        NoPerturbedImages: called before a training task came, or the job has no perturbation for
            this site, or the site's perturber does not hide enough.
    """
    place = os.environ.get(IMAGES_VARIABLE)
    if place is None or not Path(place).is_file():
        raise NoPerturbedImages(
            "there are no perturbed images: call perturbed_images() after flare.receive(), in a "
            "job whose client configuration has a ScriptPerturbation; its log says what failed"
        )
    content = load_private(Path(place))
    return PerturbedImages(content["images"], content["labels"], content["token"])
