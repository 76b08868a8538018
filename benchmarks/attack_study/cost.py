"""What one evaluation of GradWard's loops costs, over the least that it can cost.

The floor of gradient matching is forward, backward and double backward of the same batch, written
by hand with nothing around it; that of BatchNorm inversion is forward and input gradient.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from gradward.attacks import AttackSpec, Budget, run_portfolio

from .cases import CASES
from .instances import Instance, make_instance
from .store import VERSION

TARGET = 1.15
REPETITIONS = 9
# The loop's set-up cancels in the difference of two lengths.
_SHORT, _LONG = 4, 24


@dataclass(frozen=True)
class Cost:
    """A loop to be measured: an attack with its options on a case, and its floor."""

    case: str
    attack: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """For tables and files."""
        return f"{self.attack} on {self.case}"


_MATCHING = (("start", "prior"), ("distance", "cosine"), ("polish", 0.0))
COSTS = (
    Cost("bn_fc_1", "matching", _MATCHING),
    Cost("resnet18_64", "matching", _MATCHING),
    Cost("resnet18_64", "batchnorm"),
)


def measure_costs(
    costs: Sequence[Cost], out: Path, cache: Path, say: Callable[[str], None]
) -> None:
    """Measure what ``cost.json`` of ``out`` lacks."""
    file = out / "cost.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    known = {name: row for name, row in known.items() if row["version"] == VERSION}
    for cost in costs:
        if cost.name in known:
            continue
        instance = make_instance(CASES[cost.case], 0, 0, cache)
        pairs = measure(cost, instance, REPETITIONS)
        known[cost.name] = {"version": VERSION, **asdict(cost), **summary(pairs)}
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known, indent=1) + "\n")
        say(f"cost of {cost.name}: {known[cost.name]['ratio']:.3f} of its floor")


def measure(cost: Cost, instance: Instance, repetitions: int) -> list[tuple[float, float]]:
    """Return (loop, floor) CPU seconds of one evaluation, in turns."""
    floor = inversion_floor if cost.attack == "batchnorm" else matching_floor
    step = floor(instance)

    def of_floor() -> float:
        begun = time.process_time()
        for _ in range(_LONG - _SHORT):
            step()
        return (time.process_time() - begun) / (_LONG - _SHORT)

    def of_loop() -> float:
        spent = [_loop(cost, instance, evaluations) for evaluations in (_SHORT, _LONG)]
        return (spent[1] - spent[0]) / (_LONG - _SHORT)

    of_floor()
    of_loop()
    return [(of_loop(), of_floor()) for _ in range(repetitions)]


def summary(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return the median ratio and its range, and the median of both costs in milliseconds."""
    ratios = [loop / floor for loop, floor in pairs]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "lowest": round(min(ratios), 4),
        "highest": round(max(ratios), 4),
        "loop_ms": round(1e3 * statistics.median(loop for loop, _ in pairs), 3),
        "floor_ms": round(1e3 * statistics.median(floor for _, floor in pairs), 3),
    }


def _loop(cost: Cost, instance: Instance, evaluations: int) -> float:
    begun = time.process_time()
    (result,) = run_portfolio(
        instance.update.observation,
        prior=instance.prior,
        n_images=instance.case.n_images,
        settings=instance.case.settings,
        attacks=[AttackSpec(cost.attack, **dict(cost.options))],
        budget=Budget(evaluations=evaluations),
        seed=0,
        labels=instance.update.labels,
    )
    if result.status != "ok":
        raise RuntimeError(f"{cost.name}: {result.reason}")
    return time.process_time() - begun


def matching_floor(instance: Instance) -> Callable[[], Tensor]:
    """Return forward, backward and double backward of the case's first batch."""
    model, images, labels = _bare(instance)
    weights = list(model.parameters())
    direction = list(instance.update.observation.parameter_update.values())

    def step() -> Tensor:
        loss = F.cross_entropy(model(images), labels)
        slopes = torch.autograd.grad(loss, weights, create_graph=True)
        # The product with a fixed direction is the least that a distance costs.
        value = torch.stack([(a * b).sum() for a, b in zip(slopes, direction, strict=True)]).sum()
        return torch.autograd.grad(value, images)[0]

    return step


def inversion_floor(instance: Instance) -> Callable[[], Tensor]:
    """Return forward and input gradient of the case's first batch, the weights frozen."""
    model, images, labels = _bare(instance)
    model.requires_grad_(False)

    def step() -> Tensor:
        return torch.autograd.grad(F.cross_entropy(model(images), labels), images)[0]

    return step


def _bare(instance: Instance) -> tuple[nn.Module, Tensor, Tensor]:
    model = copy.deepcopy(instance.update.observation.model).train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    images = instance.prior[None].clone().requires_grad_()
    return model, images, instance.update.labels[:1]
