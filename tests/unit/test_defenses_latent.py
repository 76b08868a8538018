"""White coordinates against the covariance they should have, and the way back."""

from __future__ import annotations

import pytest
import torch

from gradward.defenses.channel import GatedChannel
from gradward.defenses.latent import ClassLatent, TooFewImages, fit_latent
from gradward.defenses.rate import image_kl, uniform_gate

from .perturbation_fixtures import generator, small_latent, spots

SITE = spots(240, 1)


def test_each_class_is_centred_and_whitened_up_to_the_shrinkage() -> None:
    """(1 - rho) Cov(w) + rho W^2 = I, for W the inverse root of (1 - rho) S + rho I."""
    latent = small_latent()
    w = latent.white(SITE.images, SITE.labels).double()
    for k in range(2):
        own, whiten = w[SITE.labels == k], latent.whiten[k].double()
        torch.testing.assert_close(own.mean(0), torch.zeros_like(own[0]), atol=1e-4, rtol=0)
        found = 0.7 * own.T @ own / len(own) + 0.3 * whiten @ whiten
        torch.testing.assert_close(found, torch.eye(len(found)).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("conditional", [True, False])
def test_the_way_back_is_the_projection_on_the_axes(conditional: bool) -> None:
    latent = small_latent(conditional)
    w = latent.white(SITE.images, SITE.labels)
    with torch.no_grad():
        z = latent.autoencoder.encode(SITE.images).flatten(1)
    mean = latent.mean[SITE.labels if conditional else torch.zeros_like(SITE.labels)]
    axes = torch.linalg.qr(latent.basis.T.double())[0].float()
    projected = (z - mean) @ axes @ axes.T + mean
    with torch.no_grad():
        grid = projected.reshape(-1, *latent.autoencoder.latent_shape)
        expected = latent.autoencoder.decode(grid)
        found = latent.decode(w, SITE.labels)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    # 99 % of the variance within classes is on the axes.
    assert (z - projected).square().sum() < 0.0101 * (z - mean).square().sum()


def test_draws_are_of_their_class_and_fresh() -> None:
    latent = small_latent()
    labels = torch.arange(40) % 2
    images, given = latent.draw(labels, generator(1))
    assert torch.equal(given, labels)
    left = images[..., :8].sum((1, 2, 3)) > images[..., 8:].sum((1, 2, 3))
    assert (left == (labels == 0)).double().mean() > 0.9
    assert (images[0] - images[2]).abs().max() > 0.05


def test_an_unconditional_latent_does_not_need_the_class() -> None:
    latent = small_latent(conditional=False)
    assert not latent.conditional
    torch.testing.assert_close(
        latent.white(SITE.images, SITE.labels), latent.white(SITE.images, 1 - SITE.labels)
    )


def test_state_round_trip() -> None:
    latent = small_latent()
    twin = ClassLatent.from_state(latent.to_state())
    torch.testing.assert_close(
        twin.white(SITE.images, SITE.labels), latent.white(SITE.images, SITE.labels)
    )
    w = torch.randn(4, latent.dimensions, generator=generator())
    torch.testing.assert_close(twin.decode(w, SITE.labels[:4]), latent.decode(w, SITE.labels[:4]))


def test_a_small_class_is_refused_without_its_count() -> None:
    few = SITE.subset([0, *range(1, 240, 2)])
    with pytest.raises(TooFewImages, match="at least 10") as error:
        fit_latent(small_latent().autoencoder, few.images, few.labels, 2)
    assert "120" not in str(error.value) and "class 0" not in str(error.value)
    fit_latent(small_latent().autoencoder, few.images, few.labels, 2, conditional=False)


def test_the_rate_holds_for_every_image_through_the_channel() -> None:
    """Held-out pictures and unfitted noise: above the rate but for clipping."""
    latent = small_latent()
    gate = torch.full((latent.dimensions,), uniform_gate(4.0, latent.dimensions))
    channel = GatedChannel(latent, gate)
    odd = torch.rand(20, *SITE.images.shape[1:], generator=generator())
    images = torch.cat([spots(200, 7).images, odd])
    labels = torch.arange(220) % 2
    w, clipped = channel.whiten(images, labels)
    assert 0 < clipped < 1
    assert image_kl(gate.double(), w.double()).max() <= channel.rate
    raw = latent.white(images, labels)
    assert image_kl(gate.double(), raw.double()).max() > 1.5 * channel.rate, "what clipping is for"


def test_a_view_of_white_coordinates_is_white() -> None:
    """The channel keeps the variance, so that every view decodes like a picture of the class."""
    latent = small_latent()
    channel = GatedChannel(latent, torch.linspace(0, 0.99, latent.dimensions))
    w = torch.randn(20000, latent.dimensions, generator=generator(1))
    view = channel.release_fresh(w, generator(2))
    torch.testing.assert_close(view.var(0), torch.ones(latent.dimensions), atol=0.06, rtol=0)
    correlation = (view * w).mean(0)
    torch.testing.assert_close(correlation, channel.gate, atol=0.05, rtol=0)
