"""Dropout left out of what simulates a client: its masks are the client's secret.

A layer of dropout can be switched off, see :func:`gradward.attacks.training_copy.training_copy`;
many networks call the function instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradward.attacks.training_copy import twice

_DROPOUTS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
)
# Of scaled_dot_product_attention's arguments.
_PLACE = 4


def draws(model: nn.Module, image: Tensor) -> bool:
    """Whether a forward pass draws from the process's generator, as dropout does in training.

    Args:
        model: in training mode; it is not changed.
        image: ``(C, H, W)``, like the client's.
    """
    own, image = copy.deepcopy(model).cpu(), image.cpu()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        own(twice(image))
        return not torch.equal(before, torch.get_rng_state())


@contextmanager
def dropout_left_out(model: nn.Module, image: Tensor) -> Iterator[None]:
    """Let a network's dropout return what it is given.

    Args:
        model, image: as of :func:`draws`: where nothing is drawn, nothing has to be looked for in
            every call of torch.
    """
    with _WithoutDropout() if draws(model, image) else nullcontext():
        yield


class _WithoutDropout(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else named["input"]
        if func is F.scaled_dot_product_attention:
            if len(args) > _PLACE:
                args = (*args[:_PLACE], 0.0, *args[_PLACE + 1 :])
            else:
                named["dropout_p"] = 0.0
        return func(*args, **named)
