"""Federated averaging that gives the same model to the bit for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.aggregator import Aggregator
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants

from gradward.flare.states import MessageError, read_dxo


class ReproducibleAggregator(Aggregator):
    """Mean of the updates weighted by local steps, summed in the order of the sites' names.

    NVFlare's own aggregator sums in the order of arrival, which rounds differently each time. An
    update of another model, with values that are not finite, or of another round is not averaged
    and the log says why; the round goes on with the others.
    """

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self._updates: dict[str, tuple[float, dict[str, np.ndarray]]] = {}

    def reset(self, fl_ctx: FLContext) -> None:
        """Forget the round's updates."""
        self._updates.clear()

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Take one site's update; return whether it counts."""
        site = fl_ctx.get_peer_context().get_identity_name()
        try:
            self._updates[site] = self._check(site, shareable, fl_ctx)
        except MessageError as error:
            self.log_warning(fl_ctx, f"the update of {site} is not averaged: {error}")
            return False
        return True

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """Average; without any update the model stays as it is."""
        if not self._updates:
            self.log_warning(fl_ctx, "no update to average; the model stays as it is")
        total = sum(weight for weight, _ in self._updates.values())
        mean: dict[str, np.ndarray] = {}
        for _, (weight, update) in sorted(self._updates.items()):
            for name, value in update.items():
                share = np.asarray(value, dtype=np.float64) * (weight / total)
                mean[name] = mean[name] + share if name in mean else share
        weights = _global_weights(fl_ctx)
        # Counters stay whole numbers: an average of them has no meaning of its own.
        rounded = {
            name: (np.rint(value) if _is_counter(weights[name]) else value).astype(
                np.asarray(weights[name]).dtype
            )
            for name, value in mean.items()
        }
        return DXO(DataKind.WEIGHT_DIFF, data=rounded).to_shareable()

    def _check(
        self, site: str, shareable: Shareable, fl_ctx: FLContext
    ) -> tuple[float, dict[str, np.ndarray]]:
        if site in self._updates:
            raise MessageError("it sent one in this round already")
        current = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        number = shareable.get_cookie(AppConstants.CONTRIBUTION_ROUND, current)
        if number != current:
            raise MessageError(f"it belongs to round {number}, this is round {current}")
        dxo = read_dxo(shareable, DataKind.WEIGHT_DIFF)
        weights = _global_weights(fl_ctx)
        if set(dxo.data) != set(weights):
            raise MessageError("its tensors are not those of the global model")
        update: dict[str, np.ndarray] = {}
        for name, value in dxo.data.items():
            array = np.asarray(value)
            if array.shape != np.shape(weights[name]):
                raise MessageError(f"{name} has shape {array.shape}")
            if not np.isfinite(array).all():
                raise MessageError(f"{name} holds values that are not finite")
            update[name] = array
        steps = dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, 1)
        if isinstance(steps, bool) or not isinstance(steps, int | float) or not steps > 0:
            raise MessageError(f"its number of steps is {steps!r}")
        return float(steps), update


def _global_weights(fl_ctx: FLContext) -> dict[str, Any]:
    weights: dict[str, Any] = fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)[ModelLearnableKey.WEIGHTS]
    return weights


def _is_counter(value: Any) -> bool:
    return np.issubdtype(np.asarray(value).dtype, np.integer)
