"""A defence of one's own: no update is longer than a bound."""

from __future__ import annotations

import torch
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants

from gradward.batchnorm import is_batchnorm_buffer
from gradward.flare.site import Site
from gradward.flare.update_filter import UpdateFilter
from gradward.training import State


class ClippedUpdate(UpdateFilter):
    """Shortens the update of the parameters to an L2 norm; BatchNorm's buffers leave unchanged."""

    def __init__(
        self,
        max_norm: float,
        train_task: str = AppConstants.TASK_TRAIN,
        validate_task: str = AppConstants.TASK_VALIDATION,
    ) -> None:
        """Check every argument: a typo in a job shall stop it at its start.

        Args:
            max_norm: above 0.
            train_task, validate_task: names of the tasks.

        Raises:
            TypeError, ValueError: with the offending value.
        """
        super().__init__(train_task, validate_task)
        if isinstance(max_norm, bool) or not isinstance(max_norm, int | float):
            raise TypeError(f"max_norm must be a number, got {max_norm!r}")
        if not max_norm > 0:
            raise ValueError(f"max_norm must be above 0, got {max_norm}")
        self.max_norm = max_norm

    def change(self, update: State, steps: int, site: Site, fl_ctx: FLContext) -> State:
        """Return what leaves; whatever is raised here keeps the update at home."""
        names = [name for name in update if not is_batchnorm_buffer(name)]
        norm = float(torch.cat([update[name].double().flatten() for name in names]).norm())
        shorter = min(1.0, self.max_norm / norm) if norm else 1.0
        return update | {name: update[name] * shorter for name in names}
