"""One site in one job as NVFlare's client runner sees it; its perturbation costs nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from gradward.data import ImageSet
from gradward.defenses.acceptance import Acceptance
from gradward.defenses.noise import load_secret
from gradward.flare.experiment import Experiment
from gradward.flare.perturber import Perturbation, PerturbedImages
from gradward.flare.states import as_arrays
from gradward.flare.trainer import LocalTrainer
from gradward.report.perturbed_pictures import RememberedPictures
from gradward.training import Batch, state_copy

from .fake_engine import context

ACCEPTED = Acceptance(
    linkage=0.0625,
    linkage_bound=0.12,
    gallery=16,
    relative_mse=0.98765,
    method="wiener",
    victims=16,
    accepted=True,
)


def accept_perturbers(monkeypatch: pytest.MonkeyPatch) -> list[Acceptance]:
    """Accept every perturber: the attacker that judges one takes a minute to train.

    Returns:
        The verdict, as the only entry of a list; another one put there is found instead.
    """
    found = [ACCEPTED]
    fit = "gradward.defenses.perturbation_fit"
    monkeypatch.setattr(f"{fit}.judge_channel", lambda *rest, **more: found[0])
    # No public image is held out for that attacker: the embedded ones just suffice for a fit.
    monkeypatch.setattr(f"{fit}._ENOUGH_VICTIMS", 1)
    return found


def experiment(**changes: Any) -> Experiment:
    """A small network on the embedded pictures."""
    values: dict[str, Any] = {
        "model": "bn_cnn",
        "model_options": {"width": 4},
        "dataset": "histology",
        "image_size": [32, 32],
        "channels": 3,
        "num_classes": 2,
        "training": {"batch_size": 8, "lr": 0.02},
        "seed": 7,
    }
    return Experiment(**(values | changes))


class FlatViews:
    """One even picture a class in place of the site's."""

    def __init__(self, labels: torch.Tensor, shape: Sequence[int]) -> None:
        self.labels = labels
        self.shape = shape

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int]) -> Batch:
        labels = self.labels[list(indices)]
        grey = 0.4 + 0.2 * labels[:, None, None, None].float()
        return Batch(grey.expand(-1, *self.shape), labels, perturbed=True)


class FlatPerturbation(Perturbation):
    """A perturbation that needs no fitting."""

    def __init__(self) -> None:
        super().__init__()
        self.strengthened: list[float] = []

    def open(
        self, site: Any, experiment: Any, images: ImageSet, fl_ctx: Any, number: int
    ) -> PerturbedImages:
        views = FlatViews(images.labels, images.images.shape[1:])
        return PerturbedImages(RememberedPictures(views), "class", "flat-1")

    def strengthen(self, site: Any, factor: float) -> None:
        self.strengthened.append(factor)


@dataclass
class Desk:
    """A site's folder, its job, and the trainer as the job asks it."""

    root: Path
    job: Experiment
    site: str = "site-4"
    components: dict[str, FLComponent] = field(default_factory=dict)

    def __post_init__(self) -> None:
        defaults = {"experiment": self.job, "perturbation": FlatPerturbation()}
        self.components = defaults | self.components
        self.settings()

    def task(self, name: str, task_id: str = "task-1") -> FLContext:
        """Return the context of one task."""
        fl_ctx = context(self.root, self.components, self.site)
        for key, value in ((FLContextKey.TASK_NAME, name), (FLContextKey.TASK_ID, task_id)):
            fl_ctx.set_prop(key, value, private=True, sticky=False)
        return fl_ctx

    def answer(self, fl_ctx: FLContext, number: int = 0, perturbed: bool = True) -> Shareable:
        """Let the trainer carry out the task of ``fl_ctx`` on the initial weights."""
        weights = as_arrays(state_copy(self.job.build_model()))
        order = DXO(DataKind.WEIGHTS, data=weights).to_shareable()
        order.set_header(AppConstants.CURRENT_ROUND, number)
        trainer = LocalTrainer(perturbation_id="perturbation" if perturbed else None)
        task = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        return trainer.execute(task, order, fl_ctx, Signal())

    @property
    def secret(self) -> bytes:
        """The site's secret."""
        return load_secret(self.root / "gradward")

    def journal(self, name: str) -> list[dict[str, Any]]:
        """Lines of one of the site's private logs of the job."""
        file = self.root / "gradward" / "jobs" / "job-1" / name
        return [json.loads(line) for line in file.read_text().splitlines()]

    def settings(self, **values: Any) -> None:
        """Write the site's ``gradward.json``."""
        values = {"threads": 1, **values}
        (self.root / "local").mkdir(parents=True, exist_ok=True)
        (self.root / "local" / "gradward.json").write_text(json.dumps(values))
