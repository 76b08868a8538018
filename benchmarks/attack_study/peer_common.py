"""What the peers' adapters share. It runs under their interpreter and imports no GradWard."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# torchvision's CUDA wheel beside a CPU torch: its compiled operators do not load, and it then
# cannot be imported for lack of their names. No contender uses them.
_OPERATORS = (
    *("nms", "qnms", "roi_align", "qroi_align", "_roi_align_backward"),
    *("roi_pool", "_roi_pool_backward", "ps_roi_align", "_ps_roi_align_backward"),
    *("ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward"),
)
_WARM_UP, _PROBE = 2, 8
# So that noise in the measured speed rarely leaves a peer with less time than GradWard had.
_MARGIN = 1.15
_TRIES = 3
_GROWTH = 20.0


class Refused(Exception):
    """A peer cannot take this case; the message says why."""


@dataclass(frozen=True)
class Found:
    """What one run of a peer came to: images ``(n, 1, H, W)``, lowest loss, iterations."""

    images: Tensor
    loss: float | None
    iterations: int
    labels: Tensor | None = None


# Runs so many iterations.
Attack = Callable[[int], Found]


def name_operators() -> None:
    """Make torchvision importable where its compiled operators are missing."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for module in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in _OPERATORS:
            library.define(f"{operator}() -> ()")
        _KEPT.append(library)


# A library that is collected takes its operators along.
_KEPT: list[torch.library.Library] = []


def serve(prepare: Callable[[dict[str, Any]], Attack], version: Callable[[], str]) -> None:
    """Answer ``--version``, or run the request of ``argv[1]`` and write the reply to ``argv[2]``.

    Args:
        prepare: builds the attack of a request; its time does not count.
        version: of the peer and what it stands on.
    """
    torch.set_num_threads(1)
    if sys.argv[1:] == ["--version"]:
        print(version())
        return
    # The graph of the model is code; the file is the parent's own.
    request = torch.load(sys.argv[1], weights_only=False)
    torch.manual_seed(request["seed"])
    reply: dict[str, Any] = {
        "status": "ok", "reason": "", "images": None, "loss": None,
        "evaluations": 0, "cpu_seconds": 0.0, "seconds": 0.0, "labels": None,
    }  # fmt: skip
    try:
        reply |= _timed(prepare(request), request["cpu_seconds"], request["seed"])
    except Refused as error:
        reply |= {"status": "refused", "reason": str(error)}
    except Exception as error:
        reply |= {"status": "failed", "reason": f"{type(error).__name__}: {str(error)[:300]}"}
    torch.save(reply, sys.argv[2])


def _timed(attack: Attack, budget: float, seed: int) -> dict[str, Any]:
    """Run the attack with as many iterations as take at least ``budget`` CPU seconds.

    The learning rate's schedule depends on their number, so that it has to be known beforehand.
    """
    attack(_WARM_UP)
    begun = time.process_time()
    attack(_PROBE)
    each = max(time.process_time() - begun, 1e-6) / _PROBE
    iterations = max(math.ceil(_MARGIN * budget / each), 1)
    for _ in range(_TRIES):
        torch.manual_seed(seed)
        begun, began = time.process_time(), time.monotonic()
        found = attack(iterations)
        spent, seconds = time.process_time() - begun, time.monotonic() - began
        if spent >= budget:
            break
        iterations = math.ceil(iterations * min(_MARGIN * budget / max(spent, 1e-6), _GROWTH))
    return {
        "images": found.images.detach().float().clamp(0, 1).contiguous(),
        "loss": found.loss,
        "evaluations": found.iterations,
        "cpu_seconds": spent,
        "seconds": seconds,
        "labels": found.labels,
    }
