"""Why an audit of one update is refused, and what to do about it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradward.attacks import AttackSpec
from gradward.audit import AuditError, audit_update
from gradward.data import ImageSet
from gradward.training import State

from .attack_fixtures import patches, train
from .audit_desk import FEW, ONE, audit, trained_states


@pytest.fixture(scope="module")
def states() -> tuple[State, State]:
    return trained_states()


def spoiled(states: tuple[State, State], value: float) -> tuple[State, State]:
    after = {name: tensor.clone() for name, tensor in states[1].items()}
    after["fc.weight"][0, 0] = value
    return states[0], after


def cut(states: tuple[State, State]) -> tuple[State, State]:
    return states[0], states[1] | {"fc.bias": torch.zeros(5)}


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (lambda s: spoiled(s, float("nan")), {}, "'fc.weight' has values that are not finite"),
        (cut, {}, r"'fc.bias' must be real \(2,\)"),
        (lambda s: (s[0], s[0]), {}, "nothing was trained; check that both states"),
        (lambda s: ({"conv.weight": torch.ones(1)}, s[1]), {}, "which the model does not know"),
        (None, {"labels": torch.tensor([2])}, "label 2 is no class of this network"),
        (
            None,
            {"labels": torch.tensor([1, 0]), "n_images": 1},
            "one for each image, 1 in all, got 2",
        ),
        (None, {"labels": torch.tensor([1.0])}, r"must be whole numbers .* got float32 \(1,\)"),
        (None, {"truth": patches()[:34], "n_images": 1}, "behind the update, 1 as it .* got 34"),
        (None, {"n_images": 0}, "at least 1 image"),
        (None, {"prior": torch.zeros(3, 16, 16)}, "the prior must be .* got .3, 16, 16."),
        (None, {"prior": torch.full((3, 32, 32), 2.0)}, r"the prior: images must .* \[0, 1\]"),
        (None, {"truth": torch.zeros(1, 1, 32, 32)}, "the truth must be"),
        (None, {"attacks": [AttackSpec("features")] * 2}, "each may be named once, got"),
        (None, {"attacks": []}, r"at least one, and each may be named once, got \[\]"),
        (None, {"image_shape": (1, 32, 32)}, "cannot train on 1-channel 32x32 images"),
    ],
)
def test_refusals_say_what_is_wrong(
    states: tuple[State, State], change: Any, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        audit(states if change is None else change(states), **arguments)


def test_an_unknown_number_of_images_must_be_given(states: tuple[State, State]) -> None:
    before, after = states
    bare = {k: v for k, v in after.items() if "num_batches" not in k}
    with pytest.raises(AuditError, match="say how many images"):
        audit((before, bare))


class Wide(nn.Module):
    """A network for images of four channels, for which there is no stand-in."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4 * 64, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.flatten(1))


def test_images_without_a_stand_in_need_public_ones() -> None:
    images = torch.cat([patches()[:3], patches()[:3, :1]], dim=1)[..., :8, :8]
    before, update, _ = train(Wide(), images[:1], torch.tensor([1]), ONE)
    arguments: dict[str, Any] = {
        "image_shape": (4, 8, 8),
        "settings": ONE,
        "n_images": 1,
        "budget": FEW,
    }
    with pytest.raises(AuditError, match="channels must be 1 or 3, got 4; give public images"):
        audit_update(Wide(), before, update, **arguments)
    public = ImageSet(images[1:], torch.tensor([7, 8]))
    result = audit_update(Wide(), before, update, public=public, **arguments)
    assert result.facts.batch_statistics == "none" and result.facts.trained is None
