"""Defences that change an update before it leaves: the baselines that know nothing of the images.

Each takes and returns a state, ``after - before`` by name. As measured so far, none stops an
attacker who adapts to it at a price that the model can bear; they are here to be compared with.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gradward.batchnorm import is_batchnorm_buffer
from gradward.training import State


def noise_deviation(update: Mapping[str, Tensor], fraction: float, percentile: float) -> float:
    """Return ``fraction`` of a percentile of the absolute values of an update, zeros left out.

    Args:
        update: floating point tensors count, counters do not.
        fraction: sigma_0 of the paper, above 0.
        percentile: in (0, 100].

    Raises:
        ValueError: a fraction or a percentile that cannot be, or nothing in the update but zeros.
    """
    if not fraction > 0 or not 0 < percentile <= 100:
        raise ValueError(
            f"the fraction must be above 0 and the percentile in (0, 100], got {fraction} and "
            f"{percentile}"
        )
    floats = [value.detach().flatten() for value in update.values() if value.is_floating_point()]
    sizes = torch.cat(floats).double().abs() if floats else torch.zeros(0)
    sizes = sizes[sizes > 0]
    if not len(sizes):
        raise ValueError("the update is zero: no noise can be calibrated to it")
    # numpy's percentile, linear between neighbours; torch.quantile ends at 2^24 values.
    ranked, position = sizes.sort().values, percentile / 100 * (len(sizes) - 1)
    below = int(position)
    above = min(below + 1, len(sizes) - 1)
    at = ranked[below] + (position - below) * (ranked[above] - ranked[below])
    return fraction * float(at)


def calibrated_noise(
    update: Mapping[str, Tensor],
    fraction: float,
    generator: torch.Generator,
    percentile: float = 95.0,
) -> State:
    """Add Gaussian noise in proportion to the update's own size.

    As in Hatamizadeh et al. 2023 (IEEE TMI, arXiv 2202.06924) and NVFlare's ``GaussianPrivacy`` for
    it: sigma is a fraction of the 95th percentile of all absolute values. BatchNorm's running
    statistics get noise like every other tensor: noise on the weights alone leaves the strongest
    attack what it reads. Counters stay; they hold no more than the number of steps.

    Args:
        update: the site's.
        fraction: sigma_0 of the paper.
        generator: CPU generator that the server cannot repeat.
        percentile: of the absolute values.

    Raises:
        ValueError: see :func:`noise_deviation`.
    """
    sigma = noise_deviation(update, fraction, percentile)
    noisy = {}
    for name, value in update.items():
        noisy[name] = value.clone()
        if value.is_floating_point():
            draws = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            noisy[name] += sigma * draws.to(value.device)
    return noisy


def dual_prune(
    update: Mapping[str, Tensor],
    owed: Mapping[str, Tensor],
    largest: float = 0.05,
    smallest: float = 0.75,
) -> tuple[State, State]:
    """Remove the largest and the smallest entries of each tensor, and owe them to the next round.

    Dual gradient pruning of Xue et al. 2024 (AAAI, arXiv 2401.16687), applied to updates: what
    was held back is added to the next update before that is pruned (error feedback). Running
    statistics of BatchNorm are pruned and not owed: they follow the images and add up to nothing.
    Counters stay.

    Args:
        update: the site's.
        owed: what this function returned with the update before; empty in the first round.
        largest, smallest: shares of a tensor's entries that are removed, by absolute value, rounded
            down; together below 1.

    Returns:
        The pruned update, and what is owed from now on.

    Raises:
        ValueError: shares that cannot be, or a debt that is not of this update's form.
    """
    if not (0 <= largest < 1 and 0 <= smallest < 1 and 0 < largest + smallest < 1):
        raise ValueError(f"the shares must lie in [0, 1), together below 1: {largest}, {smallest}")
    parameters = [
        name
        for name, value in update.items()
        if value.is_floating_point() and not is_batchnorm_buffer(name)
    ]
    if owed and set(owed) != set(parameters):
        raise ValueError("what is owed belongs to another model")
    pruned: State = {}
    still_owed: State = {}
    for name, value in update.items():
        if not value.is_floating_point():
            pruned[name] = value.clone()
            continue
        debt = owed.get(name)
        if debt is not None and debt.shape != value.shape:
            raise ValueError("what is owed belongs to another model")
        due = value if debt is None else value + debt.to(value)
        pruned[name] = _keep_middle(due, largest, smallest)
        if name in parameters:
            still_owed[name] = due - pruned[name]
    return pruned, still_owed


def _keep_middle(value: Tensor, largest: float, smallest: float) -> Tensor:
    order = value.abs().flatten().argsort(stable=True)
    first = int(smallest * len(order))
    kept = order[first : len(order) - int(largest * len(order))]
    flat = value.flatten()
    result = torch.zeros_like(flat)
    result[kept] = flat[kept]
    return result.reshape(value.shape)


def withhold_buffers(update: Mapping[str, Tensor]) -> State:
    """Leave out BatchNorm's running statistics and counters.

    It stops the attack that reads them and no other. The server must replace them, see
    :mod:`gradward.defenses.recalibration`: served with the initial ones the model is broken.
    """
    return {name: value for name, value in update.items() if not is_batchnorm_buffer(name)}
