"""The autoencoder learns, fits every size, and goes on where it was interrupted."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest
import torch

from gradward.defenses.autoencoder import (
    AutoencoderSettings,
    ConvAutoencoder,
    fit_autoencoder,
)
from gradward.defenses.seeding import seeded
from gradward.defenses.storage import StorageError, load_private, save_private

from .perturbation_fixtures import SIDE, generator, spots

IMAGES = spots(60, 0).images


def fresh() -> ConvAutoencoder:
    with seeded(generator(4)):
        return ConvAutoencoder(1, (SIDE, SIDE))


@pytest.mark.parametrize(
    ("channels", "size", "latent"),
    [
        (1, (28, 28), (8, 7, 7)),
        (3, (32, 32), (8, 8, 8)),
        (1, (64, 64), (8, 8, 8)),
        (1, (50, 33), (8, 7, 5)),
        (3, (224, 224), (8, 7, 7)),
    ],
)
def test_any_size_comes_back_in_its_own_size(
    channels: int, size: tuple[int, int], latent: tuple[int, int, int]
) -> None:
    model = ConvAutoencoder(channels, size)
    images = torch.rand(2, channels, *size, generator=generator())
    latents = model.encode(images)
    assert latents.shape == (2, *latent) == (2, *model.latent_shape)
    back = model.decode(latents)
    assert back.shape == images.shape
    assert back.min() >= 0 and back.max() <= 1
    # Normalised per image, so that jitter of one size fits all.
    torch.testing.assert_close(latents.flatten(1).std(1), torch.ones(2), atol=0.01, rtol=0)


def test_it_beats_the_mean_image_on_pictures_it_has_not_seen() -> None:
    model = fresh()
    fit_autoencoder(model, spots(200, 1).images, AutoencoderSettings(steps=150), generator(1))
    held = spots(100, 2).images
    with torch.no_grad():
        error = (model(held) - held).square().mean()
    assert error < 0.3 * (held - held.mean(0)).square().mean()


def test_an_interrupted_fit_ends_with_the_same_weights(tmp_path: Path) -> None:
    settings = AutoencoderSettings(steps=120)
    whole = fresh()
    fit_autoencoder(whole, IMAGES, settings, generator(1))

    class Interrupted(Exception):
        pass

    def interrupt(part: str, share: float) -> None:
        if share > 0.8:
            raise Interrupted

    file = tmp_path / "checkpoint"
    with pytest.raises(Interrupted):
        fit_autoencoder(
            fresh(), IMAGES, settings, generator(1), progress=interrupt, checkpoint=file
        )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_private(file)["step"] == 50, "the last whole checkpoint before the interruption"
    rest = fresh()
    fit_autoencoder(rest, IMAGES, settings, generator(9), checkpoint=file)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(rest.state_dict()[name], value, rtol=0, atol=0)


def test_a_time_budget_is_kept() -> None:
    start = time.monotonic()
    fit_autoencoder(fresh(), IMAGES, AutoencoderSettings(steps=10**6), generator(1), seconds=0.5)
    assert time.monotonic() - start < 5


def test_global_randomness_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    fit_autoencoder(fresh(), IMAGES, AutoencoderSettings(steps=2), generator(1))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 16"):
        ConvAutoencoder(1, (12, 40))
    with pytest.raises(ValueError, match="needs images"):
        fit_autoencoder(fresh(), IMAGES[:0], AutoencoderSettings(), generator())
    file = tmp_path / "checkpoint"
    save_private(file, {"step": 1})
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(StorageError, match="damaged"):
        fit_autoencoder(fresh(), IMAGES, AutoencoderSettings(), generator(), checkpoint=file)
