"""Somebody else's executor: sends differences, and keeps no record of what it trained on."""

from __future__ import annotations

import numpy as np
import torch
from net import Net
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from gradward.data import load_split


class ForeignTrainer(Executor):
    """One step on all of the site's images; ``idle`` sites answer with an error."""

    def __init__(self, idle: str = "") -> None:
        super().__init__()
        self.idle = idle

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        site = fl_ctx.get_identity_name()
        if site == self.idle:
            return make_reply(ReturnCode.EXECUTION_EXCEPTION)
        data = load_split(
            {"format": "embedded"}, "training", site=site, image_size=(32, 32), channels=3
        )
        model = Net()
        before = {
            name: torch.as_tensor(np.asarray(value))
            for name, value in from_shareable(shareable).data.items()
        }
        model.load_state_dict(before)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
        torch.nn.functional.cross_entropy(model(data.images), data.labels).backward()
        optimizer.step()
        change = {
            name: (value - before[name].to(value.dtype)).numpy()
            for name, value in model.state_dict().items()
        }
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: 1}
        return DXO(DataKind.WEIGHT_DIFF, data=change, meta=meta).to_shareable()
