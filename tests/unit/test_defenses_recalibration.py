"""Recalibrated BatchNorm statistics do what the true ones do, and the initial ones do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradward.data import ImageSet, load_public_set, load_split
from gradward.defenses.recalibration import calibration_images, keeps_statistics, recalibrate
from gradward.metrics.classification import evaluate
from gradward.models import build_model
from gradward.training import RawImages, TrainingSettings, train_locally

torch.set_num_threads(1)

FORM = {"image_size": (32, 32), "channels": 3}
EMBEDDED = {"format": "embedded"}


def test_statistics_are_those_of_the_images() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2, momentum=0.1), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    images = torch.rand(40, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 5
    recalibrate(model, images, batch_size=20)
    torch.testing.assert_close(model[0].running_mean, images.mean((0, 2, 3)))
    halves = torch.stack([half.var((0, 2, 3)) for half in images.split(20)]).mean(0)
    torch.testing.assert_close(model[0].running_var, halves)
    with torch.no_grad():
        normalised = [F.batch_norm(half, None, None, training=True) for half in images.split(20)]
        inner = torch.cat([model[1](half) for half in normalised])
    torch.testing.assert_close(model[2].running_mean, inner.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_the_model_is_otherwise_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm2d(1))
    model.train()
    model[2].eval()
    images = torch.rand(10, 1, 4, 4)
    recalibrate(model, images)
    assert model.training and model[1].training and not model[2].training
    assert model[0].momentum == 0.3 and int(model[0].num_batches_tracked) == 1
    first = model[2].running_mean.clone()
    recalibrate(model, images)
    assert torch.equal(first, model[2].running_mean), "no dropout, and no memory of the first time"


def test_images_that_do_not_fill_equal_batches_are_left_out() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1))
    images = torch.rand(11, 1, 4, 4)
    recalibrate(model, images, batch_size=4)
    torch.testing.assert_close(model[0].running_mean, images[:9].mean((0, 2, 3)))


@pytest.mark.parametrize(("count", "batch_size"), [(0, 64), (1, 64), (3, 2), (4, 1)])
def test_too_few_images_are_refused(count: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        recalibrate(nn.BatchNorm2d(1), torch.rand(count, 1, 4, 4), batch_size)


def test_group_norm_keeps_no_statistics() -> None:
    size = {"in_channels": 3, "num_classes": 2, "image_size": [32, 32]}
    assert keeps_statistics(build_model("bn_cnn", **size))
    assert not keeps_statistics(build_model("bn_cnn", norm="group", **size))


def test_classes_are_balanced_and_small_ones_used_again() -> None:
    images = torch.arange(10.0).div(10).reshape(10, 1, 1, 1)
    labels = torch.tensor([0] * 7 + [2] * 2 + [5])
    chosen = (calibration_images(ImageSet(images, labels), 9) * 10).round().flatten().tolist()
    assert chosen == [0, 1, 2, 7, 8, 7, 9, 9, 9]
    assert len(calibration_images(ImageSet(images, labels), 1)) == 3, "one a class at least"
    assert len(calibration_images(ImageSet(images[:0], labels[:0]))) == 0


def test_public_images_replace_the_sites_own_statistics() -> None:
    """On the embedded pictures: true buffers, recalibrated ones, and the initial ones (planted)."""
    sites = [load_split(EMBEDDED, "training", site=f"site-{i}", **FORM) for i in range(2, 7)]
    held_out = [load_split(EMBEDDED, split, **FORM, site="") for split in ("validation", "testing")]
    public = load_public_set(EMBEDDED, name="histology", **FORM).part("fit")
    model = build_model("bn_cnn", in_channels=3, num_classes=2, image_size=[32, 32], seed=0)
    initial = {name: value.clone() for name, value in model.named_buffers()}
    source = RawImages(torch.cat([s.images for s in sites]), torch.cat([s.labels for s in sites]))
    images = torch.cat([s.images for s in held_out])
    labels = torch.cat([s.labels for s in held_out])
    settings = TrainingSettings(batch_size=16, epochs=10, lr=0.05)
    train_locally(model, source, settings, torch.Generator().manual_seed(0))

    def accuracy() -> float:
        return evaluate(model, images, labels)["balanced_accuracy"]

    true = accuracy()
    recalibrate(model, calibration_images(public))
    recalibrated = accuracy()
    for name, value in model.named_buffers():
        value.copy_(initial[name])
    assert true > 0.85
    assert recalibrated > true - 0.1
    assert accuracy() < 0.6, "served with the initial buffers the model is broken"
