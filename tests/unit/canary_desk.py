"""A site that is asked for training and for canaries, on public images that are always there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from torch import nn

from gradward.data import PublicSet, load_public_set
from gradward.defenses.noise import SECRET_FILE
from gradward.flare.canary_protocol import CanaryOrder
from gradward.flare.perturber import Perturbation
from gradward.flare.states import as_arrays
from gradward.flare.trainer import LocalTrainer
from gradward.models.literature import BatchNormCNN
from gradward.training import Batch, LocalRun, state_copy, train_locally

from .flare_desk import Desk, experiment

# Fitted in a second: what it hides is not the matter here.
QUICK = {"mode": "uniform", "fitted_on": "public", "rate": 1.0, "autoencoder_steps": 3}
SECRET = bytes(range(32))


class DropoutCNN(nn.Module):
    """A network whose training draws from the process's own generator."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.inner = BatchNormCNN(**arguments, width=4)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images to logits, half of the pixels dropped."""
        logits: torch.Tensor = self.inner(self.drop(images))
        return logits


WITH_DROPOUT = {"model": f"{__name__}:DropoutCNN", "model_options": {}}


@lru_cache
def public_set() -> PublicSet:
    """The embedded public images."""
    return load_public_set(
        {"format": "embedded"}, name="histology", image_size=(32, 32), channels=3
    )


def fix_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make draws that no other run could repeat the same in every run."""
    for module in ("local_round", "perturber"):
        monkeypatch.setattr(
            f"gradward.flare.{module}.secret_generator", lambda: torch.Generator().manual_seed(5)
        )


def remember_batches(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return a list that fills with every batch that reaches a model in training."""
    batches: list[torch.Tensor] = []

    def remember(model: nn.Module, source: Any, settings: Any, *rest: Any, **more: Any) -> LocalRun:
        class Remembered:
            def __len__(self) -> int:
                return len(source)

            def batch(self, indices: Sequence[int]) -> Batch:
                batch: Batch = source.batch(indices)
                batches.append(batch.images)
                return batch

        return train_locally(model, Remembered(), settings, *rest, **more)

    monkeypatch.setattr("gradward.flare.local_round.train_locally", remember)
    return batches


def keep_secret(folder: Path, secret: bytes) -> None:
    folder.mkdir(mode=0o700)
    (folder / SECRET_FILE).write_bytes(secret)
    (folder / SECRET_FILE).chmod(0o600)


class Federation(Desk):
    """A desk that is asked for training and for canaries, and whose filters both pass."""

    def __post_init__(self) -> None:
        self.trainer = LocalTrainer(perturbation_id=next(iter(self.components), None))
        self.filters: list[Filter] = []
        super().__post_init__()
        keep_secret(self.root / "gradward", SECRET)
        # The job brings the network with dropout.
        (self.root / "job-1").mkdir(exist_ok=True)
        (self.root / "job-1" / "meta.json").write_text('{"byoc": true}')

    def ask(self, task: str, number: int, checksum: str) -> tuple[Shareable, FLContext]:
        """Let the trainer answer, before any filter."""
        weights = as_arrays(state_copy(self.job.build_model()))
        order = CanaryOrder(self.site, number, weights, checksum).to_shareable()
        fl_ctx = self.task(task, f"{task}-{number}")
        return self.trainer.execute(task, order, fl_ctx, Signal()), fl_ctx

    def send(self, task: str, number: int, checksum: str) -> Shareable:
        """Let the trainer answer and the filters see it."""
        reply, fl_ctx = self.ask(task, number, checksum)
        for each in self.filters:
            reply = each.process(reply, fl_ctx)
        return reply


def federation(
    root: Path, filters: Sequence[Filter] = (), perturbation: Any = None, **changes: Any
) -> Federation:
    """A site with its filters; ``changes`` are the experiment's."""
    components = {} if perturbation is None else {"perturbation": Perturbation(perturbation)}
    desk = Federation(root, experiment(**changes), components={**components})
    desk.filters = list(filters)
    return desk


def arrays_of(reply: Shareable) -> dict[str, bytes]:
    assert reply.get_return_code() == ReturnCode.OK
    return {name: value.tobytes() for name, value in from_shareable(reply).data.items()}
