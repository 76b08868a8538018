"""A judge that sees the class where there is one, and favours none where there is not."""

from __future__ import annotations

import pytest
import torch

from gradward.metrics import attacker_accuracy, train_judge
from gradward.training import TrainingSettings

torch.set_num_threads(1)
CLASSES = 3
FEW_EPOCHS = TrainingSettings(batch_size=64, lr=2e-3, epochs=3, optimizer="adam")


def bars(
    counts: tuple[int, ...], seed: int = 0, brightness: float = 0.3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy pictures with one bright bar, whose height in the picture is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = 0.6 * torch.rand(len(labels), 1, 12, 12, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 4 * label + 1 : 4 * label + 3] += brightness
    return images, labels


@pytest.fixture(scope="module")
def judge() -> torch.nn.Module:
    """Trained where one class is ten times rarer than another."""
    return train_judge(*bars((200, 60, 20)), CLASSES, torch.Generator().manual_seed(0))


def test_the_class_is_seen_in_pictures_that_show_it(judge: torch.nn.Module) -> None:
    assert attacker_accuracy(judge, *bars((50, 50, 50), seed=1)) > 0.95


def test_pictures_that_show_nothing_are_worth_chance(judge: torch.nn.Module) -> None:
    _, labels = bars((90, 9, 1))
    blank = torch.full((100, 1, 12, 12), 0.3)
    assert attacker_accuracy(judge, blank, labels) == pytest.approx(1 / CLASSES)


def test_rare_classes_count_as_much_as_common_ones(judge: torch.nn.Module) -> None:
    images, labels = bars((90, 90, 10), seed=2)
    images[labels == 2] = bars((10,), seed=3)[0]
    assert attacker_accuracy(judge, images, labels) == pytest.approx(2 / 3, abs=0.05)


def test_a_rare_class_is_not_given_up_in_doubt() -> None:
    """Faint bars, one class in ten: trained on raw counts, three judges find 30 % of its pictures.

    Repeating the rare pictures gives 68 %; the rest is what 30 pictures cannot teach.
    """
    found = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        pictures = bars((270, 30), seed=10 + seed, brightness=0.1)
        judge = train_judge(*pictures, 2, generator, FEW_EPOCHS)
        images, _ = bars((0, 300), seed=1, brightness=0.1)
        found.append(float((judge(images).argmax(1) == 1).double().mean()))
    assert sum(found) / 3 > 0.5


def test_the_same_generator_trains_the_same_judge(judge: torch.nn.Module) -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = train_judge(*bars((200, 60, 20)), CLASSES, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.random.get_rng_state()), "no global generator is touched"
    for name, value in judge.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not again.training


def test_no_pictures_are_refused(judge: torch.nn.Module) -> None:
    images, labels = bars((1, 1, 1))
    with pytest.raises(ValueError, match="no training images"):
        train_judge(images[:0], labels[:0], CLASSES, torch.Generator())
    with pytest.raises(ValueError, match="no images"):
        attacker_accuracy(judge, images[:0], labels[:0])
