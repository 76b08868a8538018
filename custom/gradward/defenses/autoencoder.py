"""A convolutional autoencoder, small enough for a hospital's desktop CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradward.defenses.storage import load_private, save_private

Progress = Callable[[str, float], None]

_LATENT_WIDTH = 8
_LATENT_CHANNELS = 8
_SAVE_EVERY = 50
_WARM_UP = 20


def no_progress(part: str, share: float) -> None:
    """Ignore how far a fit has come."""


class ConvAutoencoder(nn.Module):
    """Halves the image until it is at most 8 wide, and back; 8 latent channels.

    Images are padded at their right and lower border to a multiple of the reduction; 28x28 gives
    a latent of 8x7x7, 64x64 of 8x8x8, 224x224 of 8x7x7. The latent is normalised per image
    (GroupNorm of one group without affine), so that jitter of one size fits every picture.

    Args:
        channels: of the images.
        image_size: height and width, pixels.

    Raises:
        ValueError: an image smaller than 16 pixels.
    """

    def __init__(self, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        height, width = image_size
        if min(height, width) < 16:
            raise ValueError(f"images must be at least 16 pixels wide, got {height}x{width}")
        self.channels, self.image_size = channels, (height, width)
        halvings = max(1, math.ceil(math.log2(max(height, width) / _LATENT_WIDTH)))
        self.multiple = 2**halvings
        self.latent_shape = (
            _LATENT_CHANNELS,
            math.ceil(height / self.multiple),
            math.ceil(width / self.multiple),
        )
        # Unshuffled pixels first: the full resolution is where a convolution costs most.
        encoder: list[nn.Module] = [
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * channels, 24, 3, padding=1),
            nn.SiLU(),
        ]
        decoder: list[nn.Module] = [nn.Conv2d(_LATENT_CHANNELS, 64, 3, padding=1), nn.SiLU()]
        wide = 24
        for _ in range(halvings - 1):
            encoder += [nn.Conv2d(wide, 48, 3, stride=2, padding=1), nn.SiLU()]
            wide = 48
        encoder += [nn.Conv2d(wide, _LATENT_CHANNELS, 1)]
        deep = 64
        for _ in range(halvings - 1):
            decoder += [
                nn.Conv2d(deep, 4 * 24, 3, padding=1),
                nn.PixelShuffle(2),
                nn.SiLU(),
            ]
            deep = 24
        decoder += [
            nn.Conv2d(deep, 24, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 4 * channels, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Sigmoid(),
        ]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        self.normalise = nn.GroupNorm(1, _LATENT_CHANNELS, affine=False)
        # A third faster than the default order on a CPU, where each batch waits for the decoder.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has no stub

    def encode(self, images: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` in [0, 1] to latents ``(B, *latent_shape)``."""
        height, width = self.image_size
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        padded = F.pad(images, padding, mode="replicate")
        coded = self.encoder(padded.contiguous(memory_format=torch.channels_last))
        latents: Tensor = self.normalise(coded.contiguous())
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents to images ``(B, C, H, W)`` in [0, 1]."""
        images: Tensor = self.decoder(latents.contiguous(memory_format=torch.channels_last))
        return images[..., : self.image_size[0], : self.image_size[1]].contiguous()

    @torch.no_grad()
    def start_from(self, brightness: Tensor) -> None:
        """Let an untrained decoder answer with the mean brightness ``(C,)`` of the images.

        From grey, a decoder of mostly dark pictures may overshoot into black, where the sigmoid's
        slope has vanished, and stay there.
        """
        last = self.decoder[-3]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        last.weight.mul_(0.1)
        last.bias.copy_(brightness.clamp(0.01, 0.99).logit().repeat_interleave(4))

    def forward(self, images: Tensor) -> Tensor:
        """Return the reconstruction."""
        return self.decode(self.encode(images))


@dataclass(frozen=True)
class AutoencoderSettings:
    """How an autoencoder is fitted.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step.
        lr: of Adam after 20 steps of warming up; it falls to a hundredth along half a cosine.
        jitter: standard deviation of the noise on the latent, which makes neighbouring latents
            decode to similar pictures (the latent's own is 1).
    """

    steps: int = 700
    batch_size: int = 50
    lr: float = 3e-3
    jitter: float = 0.3


def fit_autoencoder(
    model: ConvAutoencoder,
    images: Tensor,
    settings: AutoencoderSettings,
    generator: torch.Generator,
    *,
    progress: Progress = no_progress,
    seconds: float | None = None,
    checkpoint: Path | None = None,
) -> float:
    """Fit ``model`` in place to reproduce ``images``.

    Args:
        model: to be fitted.
        images: ``(N, C, H, W)`` float32 in [0, 1].
        settings: hyperparameters.
        generator: orders the images and draws the jitter.
        progress: told the part's name and the share done, in [0, 1].
        seconds: time budget; the learning rate falls in time for it, and a fit that it cut short
            cannot be reproduced.
        checkpoint: a file in an existing folder. A fit that was interrupted goes on from it, to
            the same weights; the caller answers for the data and the settings being the same.

    Returns:
        The mean squared error of the last steps, averaged.

    Raises:
        ValueError: no images.
    """
    if not len(images):
        raise ValueError("an autoencoder needs images")
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    error, step, spent = 0.0, 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        state = load_private(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        error, step, spent = state["error"], state["step"], state["spent"]
    else:
        model.start_from(images.mean((0, 2, 3)))
    start = time.monotonic() - spent
    model.train()
    share = step / settings.steps
    while share < 1:
        rate = settings.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
        rate *= min(1.0, (step + 1) / _WARM_UP)
        optimizer.param_groups[0]["lr"] = rate
        chosen = torch.randint(len(images), (settings.batch_size,), generator=generator)
        latents = model.encode(images[chosen])
        jitter = settings.jitter * torch.randn(latents.shape, generator=generator)
        loss = F.mse_loss(model.decode(latents + jitter), images[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        error += (float(loss.detach()) - error) * max(0.05, 1 / step)
        share = step / settings.steps
        if seconds is not None:
            share = max(share, (time.monotonic() - start) / seconds)
        if step % _SAVE_EVERY == 0:
            progress("autoencoder", min(share, 1.0))
            if checkpoint is not None:
                save_private(
                    checkpoint,
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "generator": generator.get_state(),
                        "error": error,
                        "step": step,
                        "spent": time.monotonic() - start,
                    },
                )
    model.eval()
    return error
