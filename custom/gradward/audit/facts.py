"""What an audit was made of, and why one cannot be made."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import monai
import torch

from gradward import __version__
from gradward.attacks import Observation
from gradward.batchnorm import BATCHNORM_BUFFERS, has_statistics, is_batchnorm_buffer
from gradward.metrics.similarity import SIGMA, WINDOW

SSIM_MEASURE = f"MONAI, Gaussian window of {WINDOW} pixels, sigma {SIGMA:g}, data range 1"


def versions() -> dict[str, str]:
    """Return the versions of what an audit's figures depend on."""
    return {
        "gradward": __version__,
        "torch": str(torch.__version__),
        "monai": monai.__version__,
        "python": platform.python_version(),
    }


class AuditError(ValueError):
    """An audit that cannot be made or read; the message names the cause and the remedy."""


@dataclass(frozen=True)
class AuditFacts:
    """What the audit was made of; nothing in it was measured against the truth.

    Attributes:
        model: name of the network.
        trained: whether BatchNorm had counted batches before this round; None without counters.
        local_steps: K, of the local training.
        local_steps_seen: whether the update's counters told K; else the settings did.
        batch_statistics: ``"seen"``: BatchNorm normalised by its batches, and the buffers give
            their statistics away; ``"withheld"``: the update has no such buffers; ``"unmoved"``:
            they are frozen or were zeroed; ``"none"``: the network has none.
        image_shape: channels, height, width.
        n_images: reconstructed.
        n_images_given: whether the attacker was told their number; else it was inferred.
        update_is: as what the given update was taken, see
            :func:`gradward.state_files.as_difference`.
        settings: of the client's local training, as the attacker was told.
        prior: where the attacks started.
        public: where control and public mean image came from.
        budget: of each attack.
        seed: of attacks and control.
        device: where the attacks ran.
        notes: what a reader must know besides.
        attack_options: for each attack the options that are not as by default, where there are any.
        ssim: implementation and data range.
        versions: of the software.
    """

    model: str
    trained: bool | None
    local_steps: int
    local_steps_seen: bool
    batch_statistics: Literal["seen", "withheld", "unmoved", "none"]
    image_shape: tuple[int, int, int]
    n_images: int
    n_images_given: bool
    update_is: Literal["state", "difference"]
    settings: dict[str, Any]
    prior: str
    public: str
    budget: dict[str, float]
    seed: int
    device: str
    notes: tuple[str, ...]
    attack_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    ssim: str = SSIM_MEASURE
    versions: dict[str, str] = field(default_factory=versions)


def facts_of_update(
    observation: Observation, global_state: Mapping[str, Any], update: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ``trained``, ``local_steps_seen`` and ``batch_statistics`` of :class:`AuditFacts`.

    Args:
        observation: of ``update``.
        global_state: where the client started, by name.
        update: after - before, by name.
    """
    counters = [
        int(torch.as_tensor(value))
        for name, value in global_state.items()
        if is_batchnorm_buffer(name) and name.endswith(BATCHNORM_BUFFERS[2])
    ]
    if observation.has_batch_statistics:
        statistics = "seen"
    elif not any(has_statistics(module) for module in observation.model.modules()):
        statistics = "none"
    else:
        told = any(is_batchnorm_buffer(name) for name in update)
        statistics = "unmoved" if told else "withheld"
    return {
        "trained": max(counters) > 0 if counters else None,
        "local_steps_seen": observation.steps is not None,
        "batch_statistics": statistics,
    }
