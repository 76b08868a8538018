"""The client's batch order, as an attacker is told it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from gradward.attacks import AttackResult, AttackSpec, Budget, Observation, run_portfolio
from gradward.attacks.batches import given_batches
from gradward.attacks.case import AttackCase
from gradward.attacks.control import control_update
from gradward.attacks.matching import MatchingLoss, MatchingOptions
from gradward.audit import AuditError, audit_update
from gradward.training import TrainingSettings, state_copy, state_difference

from .attack_fixtures import patches, public_mean, small_net
from .audit_desk import PUBLIC

IMAGES, LABELS = patches()[200:204], torch.tensor([0, 1, 2, 3])
# Two epochs, the second in other batches.
ORDER = [[0, 1], [2, 3], [2, 0], [3, 1]]
SETTINGS = TrainingSettings(batch_size=2, lr=0.05, epochs=2, momentum=0.5, weight_decay=1e-3)
BARE = MatchingOptions(tv_weight=0.0, bn_weight=0.0)


def trained_in_order() -> tuple[dict[str, Any], dict[str, Any]]:
    """The states before and after a training by torch alone."""
    model = small_net().train()
    before = state_copy(model)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5, weight_decay=1e-3)
    for batch in ORDER:
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(model(IMAGES[batch]), LABELS[batch]).backward()
        sgd.step()
    return before, state_copy(model)


@pytest.fixture(scope="module")
def observation() -> Observation:
    before, after = trained_in_order()
    return Observation.from_update(small_net(), before, state_difference(after, before))


def attack(observation: Observation, name: str, **told: Any) -> AttackResult:
    (result,) = run_portfolio(
        observation,
        prior=public_mean(),
        n_images=4,
        settings=SETTINGS,
        attacks=[AttackSpec(name)],
        budget=Budget(12),
        seed=0,
        labels=LABELS,
        **told,
    )
    return result


def test_the_true_order_gives_the_update_and_a_repeated_one_does_not(
    observation: Observation,
) -> None:
    def distance(batches: list[list[int]]) -> float:
        case = AttackCase(observation, SETTINGS, public_mean(), 4, batches, LABELS)
        return float(MatchingLoss(case, BARE).cosine(IMAGES))

    assert distance(given_batches(ORDER, 4, 4, 2)) <= 1e-6
    assert distance([[0, 1], [2, 3]] * 2) > 1e-2


@pytest.mark.parametrize("name", ["matching", "batchnorm", "features"])
def test_who_is_told_the_order_says_so(observation: Observation, name: str) -> None:
    assert attack(observation, name, batches=ORDER).knowledge["batch_order"] == "given"
    assert attack(observation, name).knowledge["batch_order"] == "lacked"


def test_the_repeated_order_is_what_is_assumed(observation: Observation) -> None:
    told = attack(observation, "matching", batches=[[0, 1], [2, 3]] * 2)
    assumed = attack(observation, "matching")
    assert told.images is not None and assumed.images is not None
    assert torch.equal(told.images, assumed.images)
    true = attack(observation, "matching", batches=ORDER).images
    assert true is not None and not torch.equal(true, told.images)


def test_the_control_trains_in_the_given_order() -> None:
    model, settings = small_net(), replace(SETTINGS, momentum=0.0, weight_decay=0.0)
    before = state_copy(model)
    update = control_update(model, before, IMAGES, LABELS, settings, 4, seed=0, batches=ORDER)
    case = AttackCase(
        Observation.from_update(model, before, update),
        settings,
        public_mean(),
        4,
        copy.deepcopy(ORDER),
        LABELS,
    )
    assert float(MatchingLoss(case, BARE).cosine(IMAGES)) <= 1e-6


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ({"0": [0]}, "batches must be a list with a list of image indices"),
        ([[0, 1], "23"], "batches must be a list"),
        ([[0, True]], "batches must be a list"),
        (ORDER[:3], "lists 3 steps, but the client took 4"),
        ([[0, 1], [2, 4], [0, 1], [2, 3]], "step 2 of batches has image 4; 4 images are counted"),
        ([[0, 1], [2, -1], [0, 1], [2, 3]], "step 2 of batches has image -1"),
        ([[0, 1], [2, 3], [1, 1], [2, 3]], "step 3 of batches has an image twice"),
        ([[0, 1, 2], [3], [0, 1], [2, 3]], "step 1 of batches has 3 images; a step has 1 to 2"),
        ([[0, 1], [2], [], [2, 3]], "step 3 of batches has 0 images"),
        ([[0, 1], [2], [0, 1], [2]], "image 3 is in no step of batches"),
    ],
)
def test_an_order_that_cannot_be_is_refused(
    observation: Observation, batches: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        attack(observation, "features", batches=batches)
    with pytest.raises(AuditError, match=words):
        audit(batches, n_images=4)


def audit(batches: Any, **told: Any) -> Any:
    return audit_update(
        small_net(),
        *trained_in_order(),
        image_shape=(3, 32, 32),
        settings=SETTINGS,
        public=PUBLIC,
        attacks=[AttackSpec("features")],
        budget=Budget(10),
        batches=batches,
        **told,
    )


def test_an_audit_takes_the_number_of_images_from_the_order() -> None:
    result = audit(ORDER)
    assert result.facts.n_images == 4 and result.facts.n_images_given
    assert "told which images each local step took" in " ".join(result.facts.notes)
    (features,) = result.attacks
    assert features.real.knowledge["batch_order"] == "given"
    assert features.control is not None
    assert features.control.knowledge["batch_order"] == "given"
