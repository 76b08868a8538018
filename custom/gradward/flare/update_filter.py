"""What every filter that changes a site's update on its way out has in common: it fails closed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply

from gradward.flare.canary import CANARY_IMAGES_META, CANARY_TASK, canary_twin
from gradward.flare.guard import METRICS
from gradward.flare.outgoing import (
    Blocked,
    checked_metrics,
    checked_score_reply,
    comes_in,
    error_reply,
    read_result,
)
from gradward.flare.protocol import SCORE_TASK
from gradward.flare.receipt import MODE_META, PERTURBED_META, RECEIPT_META
from gradward.flare.site import Site, open_site, record_private_error
from gradward.flare.states import as_arrays
from gradward.training import State

_TOLD = (MetaKey.NUM_STEPS_CURRENT_ROUND, MODE_META, PERTURBED_META)


class UpdateFilter(Filter):
    """Changes every ``train`` result, and every canary likewise; what it cannot change stays here.

    Error replies without data pass, so do the metrics of ``validate`` and the answers to the
    audit, checked as :class:`~gradward.flare.guard.PerturbationGuard` checks them. All else is
    answered with an error reply: an update that the change fails on, and ``submit_model``, whose
    whole model holds the update unchanged. NVFlare's analytics travel past every filter.

    It comes after the guard, whose receipt fits the unchanged update only.
    """

    def __init__(self, train_task: str, validate_task: str) -> None:
        """Args: names of the two tasks."""
        super().__init__()
        self.train_task = train_task
        self.validate_task = validate_task

    @abstractmethod
    def change(self, update: State, steps: int, site: Site, fl_ctx: FLContext) -> State:
        """Return what leaves instead of ``update``, which ``steps`` local steps made.

        What is remembered or secret lies below the folders of ``site``: a canary comes with those
        of the site's twin and leaves the training's untouched.

        The result has the update's names, shapes and types; names may be missing. Any error
        keeps the update at home.
        """

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Return the changed update, a checked message, or an error reply; never raises."""
        if comes_in(self, fl_ctx):
            return shareable
        site: Site | None = None
        try:
            site = open_site(fl_ctx)
            return self._pass(site, shareable, fl_ctx)
        except Blocked as refusal:
            reason = str(refusal)
        except Exception as error:
            reason = f"{type(self).__name__} failed with {type(error).__name__}"
            if site is not None:
                record_private_error(site)
        task = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        self.log_warning(fl_ctx, f"the result of '{task}' was blocked: {reason}")
        return make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR)

    def _pass(self, site: Site, message: Shareable, fl_ctx: FLContext) -> Shareable:
        # The context is NVFlare's own; the message may call itself what it likes.
        task = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        if (error := error_reply(message)) is not None:
            return error
        if task == self.train_task:
            return self._changed(site, message, fl_ctx, _TOLD)
        if task == CANARY_TASK:
            return self._changed(canary_twin(site), message, fl_ctx, (*_TOLD, CANARY_IMAGES_META))
        if task == self.validate_task:
            metrics = checked_metrics(read_result(message, DataKind.METRICS).data, METRICS)
            return DXO(DataKind.METRICS, metrics).to_shareable()
        if task == SCORE_TASK:
            return checked_score_reply(message).to_shareable()
        raise Blocked("this task has no rule")

    def _changed(
        self, site: Site, message: Shareable, fl_ctx: FLContext, told: Collection[str]
    ) -> Shareable:
        # The receipt fits the update as it was: it is accepted and stays here.
        dxo = read_result(message, DataKind.WEIGHT_DIFF, meta=(*told, RECEIPT_META))
        meta = {name: value for name, value in dxo.meta.items() if name in told}
        if not all(type(value) in (int, str) for value in meta.values()):
            raise Blocked("the meta data holds something that is neither a count nor a name")
        steps = meta.get(MetaKey.NUM_STEPS_CURRENT_ROUND)
        if type(steps) is not int or steps < 1:
            raise Blocked("the update does not say how many steps it took")
        update = _read_update(dxo.data)
        changed = self.change({name: v.clone() for name, v in update.items()}, steps, site, fl_ctx)
        _check_form(changed, update)
        return DXO(DataKind.WEIGHT_DIFF, as_arrays(changed), meta).to_shareable()


def _read_update(data: dict[str, Any]) -> State:
    if not data:
        raise Blocked("the update is empty")
    update = {}
    for name, value in data.items():
        if type(value) is not np.ndarray or value.dtype.kind not in "fi":
            raise Blocked("the update holds something that is not an array of numbers")
        if not np.isfinite(value).all():
            raise Blocked("the update holds values that are not finite")
        update[name] = torch.from_numpy(value.copy())
    return update


def _check_form(changed: State, update: State) -> None:
    if not changed:
        raise Blocked("nothing is left of the update")
    for name, value in changed.items():
        before = update.get(name)
        if before is None or value.shape != before.shape or value.dtype != before.dtype:
            raise Blocked("the changed update has another form")
        if not torch.isfinite(value).all():
            raise Blocked("the changed update holds values that are not finite")
