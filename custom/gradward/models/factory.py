"""One function that builds every network of a job, from plain JSON values."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from gradward.models.literature import BatchNormCNN, LeNet
from gradward.models.normalisation import normalise


class ModelError(ValueError):
    """A network that cannot be built or trained as asked."""


def _resnet18(
    in_channels: int,
    num_classes: int,
    image_size: Sequence[int],
    norm: str = "batch",
    **options: Any,
) -> nn.Module:
    model = nets.resnet18(
        spatial_dims=2, n_input_channels=in_channels, num_classes=num_classes, **options
    )
    return normalise(model, norm)


def _densenet121(
    in_channels: int,
    num_classes: int,
    image_size: Sequence[int],
    norm: str = "batch",
    **options: Any,
) -> nn.Module:
    model = nets.DenseNet121(
        spatial_dims=2, in_channels=in_channels, out_channels=num_classes, **options
    )
    return normalise(model, norm)


_FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "resnet18": _resnet18,
    "densenet121": _densenet121,
    "lenet": LeNet,
    "bn_cnn": BatchNormCNN,
}
MODEL_NAMES = tuple(_FACTORIES)


def build_model(
    name: str,
    *,
    in_channels: int,
    num_classes: int,
    image_size: Sequence[int],
    seed: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network that maps ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``.

    Every argument is a JSON value, so that a job's configuration can name this function as a
    component's path.

    Args:
        name: one of ``MODEL_NAMES``, or ``"package.module:factory"``: a callable of the user's
            own that takes the options, and those of ``in_channels``, ``num_classes`` and
            ``image_size`` that it knows, as keywords and returns a ``torch.nn.Module``.
        in_channels: channels of the images, at least 1.
        num_classes: number of logits, at least 2.
        image_size: height and width, in pixels.
        seed: of the initial weights; the global generator is left as it was. None draws the
            weights from the global generator.
        options: passed on, such as ``width`` of ``"bn_cnn"`` or what MONAI's networks take. Those
            with BatchNorm take ``norm="group"``, which replaces it by GroupNorm.

    Returns:
        The network on the CPU, in training mode.

    Raises:
        ModelError: a bad value, an unknown name, a module that cannot be imported, options that
            the network does not take, or a factory that returns something else.
    """
    for label, value, least in (("in_channels", in_channels, 1), ("num_classes", num_classes, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ModelError(f"{label} must be an integer of at least {least}, got {value!r}")
    if (
        not isinstance(image_size, Sequence)
        or len(image_size) != 2
        or not all(type(side) is int and side > 0 for side in image_size)
    ):
        raise ModelError(f"image_size must be [height, width] in pixels, got {image_size!r}")
    factory = _find(name)
    arguments = {
        "in_channels": in_channels,
        "num_classes": num_classes,
        "image_size": list(image_size),
    }
    try:
        arguments = _known_to(factory, arguments)
        if seed is None:
            model = factory(**arguments, **options)
        else:
            # The CPU generator alone: torch.manual_seed would reseed every accelerator as well.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                model = factory(**arguments, **options)
    except (TypeError, ValueError) as error:
        raise ModelError(f"model {name!r} was not built: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model {name!r} must return a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def _known_to(factory: Callable[..., nn.Module], arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a network of fixed form, as jobs of others have them, does not ask for."""
    parameters = inspect.signature(factory).parameters
    if any(item.kind is item.VAR_KEYWORD for item in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def _find(name: str) -> Callable[..., nn.Module]:
    if not isinstance(name, str) or (name not in _FACTORIES and ":" not in name):
        raise ModelError(
            f"unknown model {name!r}; known are {', '.join(MODEL_NAMES)}, "
            "or your own as 'package.module:factory'"
        )
    if name in _FACTORIES:
        return _FACTORIES[name]
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    # TypeError and ValueError: a relative or an empty module name.
    except (ImportError, TypeError, ValueError) as error:
        raise ModelError(f"model {name!r}: cannot import {module_name!r}: {error}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ModelError(f"model {name!r}: {module_name!r} has no callable {attribute!r}")
    found: Callable[..., nn.Module] = factory
    return found
