"""Noise and erasing on the images that a model trains on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradward.defenses.input import ErasedImages, NoisyImages
from gradward.training import Batch, RawImages, TrainingSettings, train_locally

GREY = torch.full((6, 1, 32, 32), 0.5)
LABELS = torch.arange(6) % 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Perturbed(RawImages):
    def batch(self, indices: list[int]) -> Batch:
        return Batch(self.images[indices], self.labels[indices], perturbed=True)


def test_noise_has_its_deviation_and_stays_in_range() -> None:
    source = NoisyImages(RawImages(GREY, LABELS), 0.1, generator())
    noisy = source.batch([0, 1, 2, 3]).images
    assert (noisy - 0.5).std().item() == pytest.approx(0.1, rel=0.05)
    assert abs((noisy - 0.5).mean().item()) < 0.01
    strong = NoisyImages(RawImages(GREY, LABELS), 3.0, generator()).batch([0]).images
    assert strong.min() == 0 and strong.max() == 1


def test_noise_is_fresh_each_time_and_averages_away() -> None:
    source = NoisyImages(RawImages(GREY, LABELS), 0.1, generator())
    draws = torch.stack([source.batch([0]).images for _ in range(100)])
    assert not torch.equal(draws[0], draws[1])
    assert (draws.mean(0) - 0.5).std().item() == pytest.approx(0.01, rel=0.2)


def test_erasing_takes_one_rectangle_of_its_size() -> None:
    ramp = torch.linspace(0.2, 0.8, 1024).reshape(1, 1, 32, 32).repeat(60, 1, 1, 1)
    source = ErasedImages(RawImages(ramp, torch.zeros(60, dtype=torch.int64)), 1.0, generator())
    erased = source.batch(list(range(60))).images
    assert erased.dtype == torch.float32
    edges = set()
    for image, before in zip(erased[:, 0], ramp[:, 0], strict=True):
        rows, columns = (image != before).nonzero(as_tuple=True)
        height, width = (int(axis.max() - axis.min()) + 1 for axis in (rows, columns))
        assert len(rows) == height * width, "a full rectangle"
        edges |= {height, width}
        assert image.min() >= 0.2 and image.max() <= 0.8
    assert min(edges) >= 4 and 14 <= max(edges) <= 16


def test_erasing_has_its_probability_and_its_generator() -> None:
    many = torch.rand(400, 1, 16, 16, generator=generator(1))
    labels = torch.zeros(400, dtype=torch.int64)

    def erase(seed: int) -> torch.Tensor:
        source = ErasedImages(RawImages(many, labels), 0.3, generator(seed))
        return source.batch(list(range(400))).images

    share = (erase(2) != many).flatten(1).any(1).float().mean().item()
    assert 0.22 < share < 0.38
    assert torch.equal(erase(2), erase(2)) and not torch.equal(erase(2), erase(3))


@pytest.mark.parametrize(
    "wrap",
    [lambda s: NoisyImages(s, 0.1, generator()), lambda s: ErasedImages(s, 0.5, generator())],
)
def test_raw_stays_raw_and_perturbed_stays_perturbed(wrap: object) -> None:
    assert not wrap(RawImages(GREY, LABELS)).batch([0]).perturbed
    batch = wrap(Perturbed(GREY, LABELS)).batch([3, 1])
    assert batch.perturbed and batch.labels.tolist() == [1, 1]
    assert len(wrap(RawImages(GREY, LABELS))) == 6
    assert wrap(RawImages(GREY, LABELS)).batch([]).images.shape == (0, 1, 32, 32)


def test_training_uses_them_and_asks_for_a_secret() -> None:
    seen = []

    class Watch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1024, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return self.fc(images.flatten(1))

    settings = TrainingSettings(batch_size=6, input_noise=0.2, random_erasing=1.0)
    with pytest.raises(ValueError, match="secret"):
        train_locally(Watch(), RawImages(GREY, LABELS), settings, generator())
    assert not seen
    train_locally(Watch(), RawImages(GREY, LABELS), settings, generator(), secret=generator(1))
    assert (seen[0] - 0.5).std().item() == pytest.approx(0.2, rel=0.15)


@pytest.mark.parametrize("values", [{"input_noise": -0.1}, {"random_erasing": 1.5}])
def test_wrong_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        TrainingSettings.from_dict(values)
    with pytest.raises(ValueError, match="above 0"):
        NoisyImages(RawImages(GREY, LABELS), 0.0, generator())
    with pytest.raises(ValueError, match="probability"):
        ErasedImages(RawImages(GREY, LABELS), 0.0, generator())
