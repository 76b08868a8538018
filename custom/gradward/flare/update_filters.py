"""The published update defences as NVFlare filters, for ``task_result_filters``."""

from __future__ import annotations

import hmac

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy

from gradward.defenses.noise import load_secret
from gradward.defenses.storage import load_private, save_private
from gradward.defenses.updates import calibrated_noise, dual_prune, withhold_buffers
from gradward.flare.outgoing import Blocked
from gradward.flare.receipt import state_digest
from gradward.flare.site import Site
from gradward.flare.states import as_arrays
from gradward.flare.update_filter import UpdateFilter
from gradward.training import State

OWED_FILE = "pruning_owed.pt"
PRUNING_METHODS = ("percentile", "dual")

# The site's secret also keys frozen noise and receipts: each use has a key of its own.
_PURPOSE = b"gradward update noise 1"


class UpdateNoise(UpdateFilter):
    """Gaussian noise in proportion to the update.

    See :func:`gradward.defenses.updates.calibrated_noise`. The noise is a keyed function of the
    update: a server that asks twice for the same update gets the same noise, and has nothing to
    average.
    """

    def __init__(
        self,
        fraction: float,
        percentile: float = 95.0,
        train_task: str = AppConstants.TASK_TRAIN,
        validate_task: str = AppConstants.TASK_VALIDATION,
    ) -> None:
        """Check every argument.

        Args:
            fraction: of the percentile of the absolute values, above 0.
            percentile: in (0, 100).
            train_task, validate_task: names of the tasks.

        Raises:
            TypeError, ValueError: with the offending value.
        """
        super().__init__(train_task, validate_task)
        _check_number("fraction", fraction, 0, float("inf"))
        _check_number("percentile", percentile, 0, 100)
        self.fraction = fraction
        self.percentile = percentile

    def change(self, update: State, steps: int, site: Site, fl_ctx: FLContext) -> State:
        """Add the noise."""
        key = hmac.digest(load_secret(site.private), _PURPOSE, "sha256")
        content = state_digest(as_arrays(update)).encode()
        seed = int.from_bytes(hmac.digest(key, content, "sha256")[:8], "big") >> 1
        generator = torch.Generator().manual_seed(seed)
        return calibrated_noise(update, self.fraction, generator, self.percentile)


class UpdatePruning(UpdateFilter):
    """Removes entries of the update by their size.

    ``"percentile"`` is NVFlare's ``PercentilePrivacy`` (Shokri and Shmatikov 2015): per local step,
    what is below the percentile of all absolute values goes and the rest is cut to ``gamma``.
    ``"dual"`` is :func:`gradward.defenses.updates.dual_prune`; what it holds back lies in the
    site's private job folder and is added to the next round's update.
    """

    def __init__(
        self,
        method: str,
        percentile: float = 90.0,
        gamma: float = 1.0,
        largest: float = 0.05,
        smallest: float = 0.75,
        train_task: str = AppConstants.TASK_TRAIN,
        validate_task: str = AppConstants.TASK_VALIDATION,
    ) -> None:
        """Check every argument.

        Args:
            method: ``"percentile"`` or ``"dual"``.
            percentile: percentage of the entries that ``"percentile"`` removes, in (0, 100).
            gamma: largest absolute value that it lets pass, above 0.
            largest, smallest: shares of each tensor that ``"dual"`` removes, together below 1.
            train_task, validate_task: names of the tasks.

        Raises:
            TypeError, ValueError: with the offending value.
        """
        super().__init__(train_task, validate_task)
        if method not in PRUNING_METHODS:
            raise ValueError(f"method must be one of {PRUNING_METHODS}, got {method!r}")
        _check_number("percentile", percentile, 0, 100)
        _check_number("gamma", gamma, 0, float("inf"))
        _check_number("largest", largest, 0, 1)
        _check_number("smallest", smallest, 0, 1 - largest)
        self.method = method
        self.percentile = percentile
        self.gamma = gamma
        self.largest = largest
        self.smallest = smallest

    def change(self, update: State, steps: int, site: Site, fl_ctx: FLContext) -> State:
        """Prune the update."""
        if self.method == "percentile":
            return self._prune_by_percentile(update, steps, fl_ctx)
        file = site.job_folder / OWED_FILE
        owed = load_private(file) if file.exists() else {}
        pruned, owed = dual_prune(update, owed, self.largest, self.smallest)
        save_private(file, owed)
        return pruned

    def _prune_by_percentile(self, update: State, steps: int, fl_ctx: FLContext) -> State:
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: steps}
        dxo = DXO(DataKind.WEIGHT_DIFF, as_arrays(update), meta)
        shipped = PercentilePrivacy(self.percentile, self.gamma)
        # None is how it says that it did nothing; NVFlare would then send the update as it was.
        pruned = shipped.process_dxo(dxo, dxo.to_shareable(), fl_ctx)
        if pruned is None:
            raise Blocked("the update was not pruned")
        # It divides by the steps and multiplies again: counters come back as fractions.
        arrays = {name: torch.from_numpy(np.array(pruned.data[name])) for name in update}
        return {
            name: (array if update[name].is_floating_point() else array.round()).to(update[name])
            for name, array in arrays.items()
        }


class WithholdBuffers(UpdateFilter):
    """Leaves out BatchNorm's running statistics; the aggregator needs ``withheld="buffers"``."""

    def __init__(
        self,
        train_task: str = AppConstants.TASK_TRAIN,
        validate_task: str = AppConstants.TASK_VALIDATION,
    ) -> None:
        """Args: names of the tasks."""
        super().__init__(train_task, validate_task)

    def change(self, update: State, steps: int, site: Site, fl_ctx: FLContext) -> State:
        """Leave them out."""
        return withhold_buffers(update)


def _check_number(name: str, value: float, above: float, below: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not above < value < below:
        raise ValueError(f"{name} must lie between {above} and {below}, got {value}")
