"""Federated averaging that gives the same model to the bit for the same seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.aggregator import Aggregator
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants

from gradward.batchnorm import is_batchnorm_buffer
from gradward.data import DataError
from gradward.flare.experiment import JobError, experiment_of
from gradward.flare.recalibration import PublicRecalibration
from gradward.flare.site import SiteSettingsError, open_site
from gradward.flare.states import MessageError, read_dxo

BUFFERS = "buffers"


class ReproducibleAggregator(Aggregator):
    """Mean of the updates weighted by local steps, summed in the order of the sites' names.

    NVFlare's own aggregator sums in the order of arrival, which rounds differently each time. An
    update of another model, with values that are not finite, or of another round is not averaged
    and the log says why; the round goes on with the others.

    Where the job lets sites withhold BatchNorm's statistics, the mean is that of the sites that
    sent them; when none did, the server recalculates them on public images after each round. It
    never leaves the initial ones in a model that has moved on, which breaks it.
    """

    def __init__(self, withheld: str | None = None, experiment_id: str = "experiment") -> None:
        """Check every argument.

        Args:
            withheld: ``"buffers"`` accepts updates without BatchNorm buffers; None does not.
            experiment_id: id of the job's :class:`~gradward.flare.experiment.Experiment`.

        Raises:
            ValueError: with the offending value.
        """
        super().__init__()
        if withheld not in (None, BUFFERS):
            raise ValueError(f"withheld must be {BUFFERS!r} or null, got {withheld!r}")
        self.withheld = withheld
        self.experiment_id = experiment_id
        self._updates: dict[str, tuple[float, dict[str, np.ndarray]]] = {}
        self._recalibration: PublicRecalibration | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Have the public images ready before the first round, or end the job."""
        if event_type == EventType.START_RUN and self.withheld == BUFFERS:
            try:
                experiment = experiment_of(fl_ctx, self.experiment_id)
                self._recalibration = PublicRecalibration(experiment, open_site(fl_ctx))
            except (DataError, JobError, SiteSettingsError) as error:
                self.system_panic(f"withheld buffers cannot be replaced: {error}", fl_ctx)

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
        weights = _global_weights(fl_ctx)
        change = {name: _as_stored(name, value, weights) for name, value in self._mean().items()}
        if change and self._recalibration is not None and set(change) != set(weights):
            change |= self._recalibrated(self._recalibration, weights, change)
        return DXO(DataKind.WEIGHT_DIFF, data=change).to_shareable()

    def _mean(self) -> dict[str, np.ndarray]:
        """Average each tensor over the sites that sent it, in float64."""
        totals: dict[str, float] = {}
        for weight, update in self._updates.values():
            for name in update:
                totals[name] = totals.get(name, 0.0) + weight
        mean: dict[str, np.ndarray] = {}
        for _, (weight, update) in sorted(self._updates.items()):
            for name, value in update.items():
                share = np.asarray(value, dtype=np.float64) * (weight / totals[name])
                mean[name] = mean[name] + share if name in mean else share
        return mean

    @staticmethod
    def _recalibrated(
        recalibration: PublicRecalibration,
        weights: Mapping[str, Any],
        change: Mapping[str, np.ndarray],
    ) -> dict[str, np.ndarray]:
        """Return the change from the present buffers to those that fit the averaged model."""
        averaged = {
            name: np.asarray(value) + change.get(name, 0) for name, value in weights.items()
        }
        return {
            name: value - np.asarray(weights[name])
            for name, value in recalibration.buffers(averaged).items()
        }

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
        whole = set(weights)
        allowed = [whole]
        if self.withheld == BUFFERS:
            allowed.append({name for name in whole if not is_batchnorm_buffer(name)})
        if set(dxo.data) not in allowed:
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


def _as_stored(name: str, change: np.ndarray, weights: Mapping[str, Any]) -> np.ndarray:
    """Return a change in the type that the global model has."""
    present = np.asarray(weights[name])
    if np.issubdtype(present.dtype, np.integer):
        # Counters stay whole numbers: an average of them has no meaning of its own.
        change = np.rint(change)
    elif name.endswith("running_var"):
        # A site's noise can push a variance below zero, where evaluation gives no number at all.
        change = np.maximum(change, -present)
    stored: np.ndarray = change.astype(present.dtype)
    return stored
