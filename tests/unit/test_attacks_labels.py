"""Labels are read from the last layer's update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradward.attacks import AttackRefused, label_rehearsal
from gradward.attacks.labels import infer_labels
from gradward.data.images import ImageSet
from gradward.training import RawImages, TrainingSettings, train_locally

from .attack_fixtures import observe, patches, public_mean, small_net

REPEATED = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])


@pytest.mark.parametrize("label", range(4))
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_image(label: int, optimizer: str) -> None:
    settings = TrainingSettings(batch_size=1, optimizer=optimizer)
    observation, _ = observe(small_net(), patches()[200:201], torch.tensor([label]), settings)
    inferred = infer_labels(observation, settings, 1, [[0]], public_mean()[None]).values
    assert inferred.tolist() == [label]
    assert inferred.dtype == torch.int64


@pytest.mark.parametrize(
    "settings",
    [
        TrainingSettings(batch_size=8, lr=0.01),
        TrainingSettings(batch_size=2, lr=1e-5),
        TrainingSettings(batch_size=8, lr=1e-5, epochs=2, momentum=0.9, weight_decay=0.01),
    ],
    ids=["one step", "four steps", "two epochs with momentum"],
)
def test_repeated_labels_are_counted(settings: TrainingSettings) -> None:
    observation, batches = observe(small_net(), patches()[200:208], REPEATED, settings)
    inferred = infer_labels(observation, settings, 8, batches, public_mean()[None]).values
    assert inferred.tolist() == REPEATED.tolist()


@pytest.mark.parametrize("count", [1, 8])
def test_without_a_bias_the_weights_rows_tell(count: int) -> None:
    settings = TrainingSettings(batch_size=8)
    model = small_net()
    model.fc = nn.Linear(4096, 4, bias=False)
    observation, _ = observe(model, patches()[200 : 200 + count], REPEATED[:count], settings)
    one_step = [list(range(count))]
    inferred = infer_labels(observation, settings, count, one_step, public_mean()[None]).values
    assert inferred.tolist() == REPEATED[:count].tolist()


def brightness_classes(images: Tensor) -> Tensor:
    """Three classes that a network learns at once, ``(N,)``."""
    return torch.bucketize(images.mean(dim=(1, 2, 3)), torch.tensor([0.5, 0.75]))


@pytest.fixture(scope="module")
def trained_net() -> nn.Module:
    model, images = small_net(classes=3), patches()[:96]
    settings = TrainingSettings(lr=0.05, batch_size=8, epochs=4)
    labels = brightness_classes(images)
    train_locally(model, RawImages(images, labels), settings, torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize(
    "settings",
    [
        TrainingSettings(batch_size=8, lr=0.01),
        TrainingSettings(batch_size=4, lr=0.01, momentum=0.9),
    ],
    ids=["one step", "two steps with momentum"],
)
def test_on_a_trained_model_labelled_public_images_tell_more(
    trained_net: nn.Module, settings: TrainingSettings
) -> None:
    public = ImageSet(patches()[96:160], brightness_classes(patches()[96:160]))
    right = {"prior alone": 0, "labelled images": 0}
    for start in (176, 200, 232):
        images = patches()[start : start + 8]
        labels = brightness_classes(images)
        observation, batches = observe(trained_net, images, labels, settings)
        for name, known in (("prior alone", None), ("labelled images", public)):
            inferred = infer_labels(
                observation, settings, 8, batches, public_mean()[None], known
            ).values
            counts = torch.stack([torch.bincount(each, minlength=3) for each in (labels, inferred)])
            right[name] += int(counts.min(dim=0).values.sum())
    assert right["labelled images"] >= 21 > right["prior alone"]


def test_a_class_without_public_images_leaves_the_prior_to_tell(trained_net: nn.Module) -> None:
    settings = TrainingSettings(batch_size=8, lr=0.01)
    labels = brightness_classes(patches()[200:208])
    observation, _ = observe(trained_net, patches()[200:208], labels, settings)
    lacking = ImageSet(patches()[:8], torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]))
    without, with_few = (
        infer_labels(observation, settings, 8, [list(range(8))], public_mean()[None], public)
        for public in (None, lacking)
    )
    assert torch.equal(without.values, with_few.values)
    assert not with_few.by_public_images


def test_many_images_are_rehearsed_less_often_and_too_many_not_at_all(
    trained_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainingSettings(batch_size=8, lr=0.01)
    labels = brightness_classes(patches())
    observation, _ = observe(trained_net, patches()[200:208], labels[200:208], settings)
    public = ImageSet(patches()[96:160], labels[96:160])
    monkeypatch.setattr(label_rehearsal, "MOST_PASSES", 32)
    made: list[label_rehearsal.Rehearsed] = []

    class Book(label_rehearsal.RehearsalBook):
        def recall(self, *arguments: Any) -> label_rehearsal.Rehearsed:
            made.append(super().recall(*arguments))
            return made[-1]

    many = [list(range(first, min(first + 8, 129))) for first in range(0, 129, 8)]
    one_step = [list(range(8))]
    for count, batches, rehearsed in ((8, one_step, True), (8, one_step, True), (129, many, False)):
        inferred = infer_labels(
            observation, settings, count, batches, public_mean()[None], public, Book(0)
        )
        assert (len(inferred.values), inferred.by_public_images) == (count, rehearsed)
    assert [len(each.counts) for each in made] == [4, 4]
    assert torch.equal(made[0].counts, made[1].counts)


def test_a_book_forgets_what_was_not_asked_for_lately() -> None:
    drawn: list[float] = []

    def make(generator: torch.Generator) -> label_rehearsal.Rehearsed:
        drawn.append(float(torch.rand((), generator=generator)))
        return label_rehearsal.Rehearsed([], torch.zeros(0))

    book = label_rehearsal.RehearsalBook(3)
    for key in ("a", "b", "c", "d", "a", "e", "a", "b"):
        book.recall(key, make)
    assert len(drawn) == 6, "each once, and b again"
    assert len(set(drawn)) == 1, "whatever was drawn before"


def test_where_labels_cannot_be_had() -> None:
    adam = TrainingSettings(batch_size=8, optimizer="adam")
    observation, _ = observe(small_net(), patches()[200:208], REPEATED, adam)
    with pytest.raises(AttackRefused, match="adam"):
        infer_labels(observation, adam, 8, [list(range(8))], public_mean()[None])

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    sgd = TrainingSettings(batch_size=8)
    observation, _ = observe(model, patches()[200:208], REPEATED, sgd)
    with pytest.raises(AttackRefused, match="no linear layer"):
        infer_labels(observation, sgd, 8, [list(range(8))], public_mean()[None])
