"""DP-SGD (Abadi et al. 2016, arXiv 1607.00133): each image's gradient clipped, their sum noised.

Each step draws every image with probability q by itself (Poisson sampling), clips each image's
gradient to ``max_grad_norm`` (that of its mean loss over several moved copies, if so many are asked
for), adds Gaussian noise to their sum and divides by the expected batch.
What that costs is counted by :mod:`gradward.defenses.privacy_account`. The noise comes from torch's
Mersenne Twister: attacks on floating point or on the generator are outside the claim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from gradward.defenses.class_pictures import Movement, moved_at_random
from gradward.defenses.privacy_account import (
    EpsilonSpent,
    PrivacyAccount,
    PrivateRound,
    plan_round,
)
from gradward.models import ModelError

__all__ = [
    "EpsilonSpent",
    "PrivacyAccount",
    "PrivateRound",
    "check_separable",
    "gradients_by_image",
    "plan_round",
    "poisson_batches",
    "private_step",
]

# Images whose gradients are in memory at once.
CHUNK = 16


def poisson_batches(
    n_images: int, planned: PrivateRound, generator: torch.Generator
) -> list[list[int]]:
    """Draw every image for every step by itself; batches differ in size and may be empty."""
    drawn = torch.rand(planned.steps, n_images, generator=generator) < planned.sampling_rate
    return [row.nonzero().flatten().tolist() for row in drawn]


def private_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    planned: PrivateRound,
    generator: torch.Generator,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that takes one private step on images and labels.

    Args:
        model: in training mode; neither wrapped nor hooked.
        optimizer: over the model's parameters; what it makes of private gradients is private.
        planned: clipping and noise.
        generator: CPU generator of the noise, which the server cannot repeat.

    Raises:
        ModelError: the model mixes the images of a batch, as BatchNorm does.
    """
    check_separable(model)
    device = next(model.parameters()).device
    noise = generator
    if device.type != "cpu":
        noise = torch.Generator(device)
        noise.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    private = DPOptimizer(
        optimizer,
        noise_multiplier=planned.noise_multiplier,
        max_grad_norm=planned.max_grad_norm,
        expected_batch_size=planned.expected_batch,  # of Poisson batches: a mean, not a count
        generator=noise,
    )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def step(images: Tensor, labels: Tensor) -> Tensor:
        losses = []
        size = max(1, CHUNK // planned.augmentations)
        # An empty batch is one empty chunk: a step of pure noise. Left out, it would be told.
        chunks = list(zip(images.split(size), labels.split(size), strict=True))
        for number, (some, their_labels) in enumerate(chunks, start=1):
            private.zero_grad()
            copies = _copies(some, planned.augmentations, generator)
            gradients, loss = gradients_by_image(model, copies, their_labels)
            for name, parameter in trained.items():
                parameter.grad_sample = gradients[name]  # type: ignore[attr-defined]
            # Clipped and added up until the last chunk, which brings the noise and the step.
            private.signal_skip_step(number < len(chunks))
            private.step()
            losses.append(loss)
        for parameter in trained.values():
            parameter.grad_sample = parameter.summed_grad = None  # type: ignore[attr-defined]
        return torch.cat(losses).mean()

    return step


def _copies(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``(B, count, C, H, W)``: each image itself, or several that are moved a little."""
    if count == 1 or not len(images):
        return images[:, None]
    repeated = images.repeat_interleave(count, dim=0)
    moved = moved_at_random(repeated, Movement(), generator)
    return moved.unflatten(0, (len(images), count))


def gradients_by_image(
    model: nn.Module, copies: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the gradient of each image's cross-entropy, the mean over its copies, and the losses.

    By ``torch.func`` and not by Opacus' hooks, which refuse the in-place additions of MONAI's
    networks.

    Args:
        model: whose parameters count where they train.
        copies: ``(B, A, C, H, W)``, A copies of each image.
        labels: ``(B,)``.

    Returns:
        ``(B, *shape)`` by parameter name, and ``(B,)``.
    """
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {
        name: value.detach()
        for name, value in (*model.named_parameters(), *model.named_buffers())
        if name not in trained
    }
    if not len(copies):
        empty = {name: value.new_zeros((0, *value.shape)) for name, value in trained.items()}
        return empty, copies.new_zeros(0)

    def loss_of(parameters: dict[str, Tensor], own: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**fixed, **parameters}, (own,))
        return F.cross_entropy(logits, label.expand(len(own), *label.shape))

    by_image = vmap(grad_and_value(loss_of), in_dims=(None, 0, 0), randomness="different")
    gradients, losses = by_image(trained, copies, labels)
    return gradients, losses


def check_separable(model: nn.Module) -> None:
    """Make sure that no layer mixes the images of a batch or remembers them.

    Raises:
        ModelError: BatchNorm, or running statistics of another kind.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) or getattr(module, "track_running_stats", False):
            raise ModelError(
                f"{type(model).__name__} has {type(module).__name__} at {name}, which mixes the "
                "images of a batch: DP-SGD cannot bound one image's influence. Use GroupNorm, "
                'model_options {"norm": "group"} of bn_cnn, resnet18 and densenet121'
            )
