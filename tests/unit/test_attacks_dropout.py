"""Dropout: its masks are left out of the attacks, and whatever is drawn comes from the seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradward.attacks import AttackSpec, Budget, control_update, worker
from gradward.attacks.dropout import draws, dropout_left_out
from gradward.attacks.spool import save_state
from gradward.attacks.training_copy import training_copy
from gradward.audit import AuditResult, audit_update
from gradward.models import build_model
from gradward.training import TrainingSettings, state_copy

from .attack_fixtures import patches, public_mean, small_net, train
from .audit_desk import ONE, PUBLIC, TRUTH
from .canary_desk import WITH_DROPOUT


class ByLayer(nn.Module):
    """Dropout as most networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop = small_net(), nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(self.drop(images))


class ByFunction(nn.Module):
    """Dropout as a function, of pixels and of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_net()

    def forward(self, images: Tensor) -> Tensor:
        images = F.dropout2d(F.dropout(images, 0.5, self.training), training=self.training)
        return self.inner(images)


class InAttention(nn.Module):
    """Dropout of a layer of attention, and of the function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 4)
        self.look = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.look(self.embed(images).flatten(2).transpose(1, 2))
        share = 0.3 if self.training else 0.0
        by_name = F.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=share)
        by_place = F.scaled_dot_product_attention(tokens, tokens, tokens, None, share)
        return self.head((by_name + by_place).mean(1))


class SkippingBranch(nn.Module):
    """Stochastic depth, which is no dropout of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.branch = small_net(), nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        kept = torch.rand(len(images), 1, 1, 1) < 0.5 if self.training else 1
        return self.inner(images + kept * self.branch(images))


DRAWING = pytest.mark.parametrize("network", [ByLayer, ByFunction, InAttention, SkippingBranch])


def audits(model: nn.Module, seeds: tuple[int, ...]) -> list[AuditResult]:
    """Audit one update again and again, the process's generator elsewhere each time."""
    before, update, _ = train(model, TRUTH, torch.tensor([1]), ONE)
    results = []
    for number, seed in enumerate(seeds):
        torch.manual_seed(number)
        state = torch.get_rng_state()
        results.append(
            audit_update(
                model,
                before,
                update,
                image_shape=(3, 32, 32),
                settings=ONE,
                n_images=1,
                public=PUBLIC,
                attacks=[AttackSpec("features"), AttackSpec("matching", restarts=2)],
                budget=Budget(evaluations=8),
                seed=seed,
            )
        )
        assert torch.equal(torch.get_rng_state(), state), "it is left as it was"
    return results


def losses(result: AuditResult) -> list[tuple[float | None, float | None]]:
    found = []
    for attack in result.attacks:
        assert attack.real.status == "ok", attack.real.reason
        assert attack.control is not None and attack.control.loss is not None
        found.append((attack.real.loss, attack.control.loss))
    return found


@DRAWING
def test_a_seed_gives_the_same_result_every_time(network: Callable[[], nn.Module]) -> None:
    first, again, other = audits(network(), seeds=(0, 0, 1))
    assert losses(first) == losses(again)
    assert losses(first) != losses(other)
    assert any("draws at random" in note for note in first.facts.notes)


def test_a_network_that_draws_nothing_is_not_said_to() -> None:
    (result,) = audits(small_net(), seeds=(0,))
    assert not any("draws" in note for note in result.facts.notes)


@pytest.mark.parametrize("network", [ByLayer, ByFunction, InAttention])
def test_dropout_is_left_out(network: Callable[[], nn.Module]) -> None:
    model = network().train()
    # Batch statistics are those of training in both.
    expected = copy.deepcopy(model)
    for module in expected.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    images = patches()[:4]
    with dropout_left_out(model, images[0]):
        found = training_copy(model)(images)
    torch.testing.assert_close(found, expected(images))
    assert draws(model, images[0]) and not draws(copy.deepcopy(model).eval(), images[0])


@DRAWING
def test_the_controls_masks_come_from_its_seed(network: Callable[[], nn.Module]) -> None:
    model = network()
    labels = torch.arange(8) % 4
    # As many images as there are: the seed has no say in which are taken.
    settings = TrainingSettings(batch_size=8, lr=0.02)
    made = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        made.append(
            control_update(model, state_copy(model), patches()[:8], labels, settings, 8, seed)
        )
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    distance = max(float((made[0][n] - made[2][n]).abs().max()) for n in made[0])
    assert distance > 1e-5, "another seed, other masks"


def test_a_worker_of_a_federation_answers_alike(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "name": WITH_DROPOUT["model"],
        "in_channels": 3,
        "num_classes": 2,
        "image_size": [32, 32],
        "seed": 0,
    }
    before, update, _ = train(build_model(**arguments), TRUTH, torch.tensor([1]), ONE)
    save_state(tmp_path / "update.npz", update)
    save_state(tmp_path / "global.npz", before)
    save_state(tmp_path / "control.npz", {"images": patches()[:8], "labels": torch.arange(8) % 2})
    np.save(tmp_path / "prior.npy", public_mean().numpy())
    request = {
        "entry": str(tmp_path),
        "model": arguments,
        "settings": {"batch_size": 1, "lr": 0.02},
        "attacks": [{"name": "features"}, {"name": "matching"}],
        "budget": {"evaluations": 5},
        "seed": 3,
        "rehearsal_seed": 4,
        **{name: str(tmp_path / f"{name}.npz") for name in ("global", "control")},
        "prior": str(tmp_path / "prior.npy"),
    }
    answers = []
    for elsewhere in (1, 2):
        torch.manual_seed(elsewhere)
        reply = worker.answer(request)
        assert reply["status"] == "ok", reply["reason"]
        answers.append([(r["attack"], r["control"], r["loss"]) for r in reply["results"]])
    assert answers[0] == answers[1] and len(answers[0]) == 4
