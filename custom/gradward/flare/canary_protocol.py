"""The order for a canary update, and the answer to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from gradward.flare.canary import CANARY_IMAGES_META, CANARY_TASK
from gradward.flare.states import MessageError, read_dxo, stated_steps

CHECKSUM_HEADER = "gradward_public_checksum"


@dataclass(frozen=True)
class CanaryAnswer:
    """A canary update as it left the site.

    Attributes:
        arrays: after - before, by name.
        images: different images that the site's batches asked for; at least 1.
        steps: local steps, see :func:`~gradward.flare.states.stated_steps`.
    """

    arrays: Mapping[str, np.ndarray]
    images: int
    steps: int | None = None


@dataclass(frozen=True)
class CanaryOrder:
    """What the training task says, and by which public images the answer will be scored.

    Attributes:
        site: that shall answer.
        round: whose global weights these are.
        weights: arrays by name.
        public_checksum: of the server's public images; a site that has others does not answer.
    """

    site: str
    round: int
    weights: Mapping[str, Any]
    public_checksum: str
    task: ClassVar[str] = CANARY_TASK

    def to_shareable(self) -> Shareable:
        """Pack as the training task is packed, so that the same filters apply to it."""
        order = DXO(DataKind.WEIGHTS, data=dict(self.weights)).to_shareable()
        order.set_header(AppConstants.CURRENT_ROUND, self.round)
        order.set_header(CHECKSUM_HEADER, self.public_checksum)
        return order

    @staticmethod
    def read_reply(reply: Shareable) -> CanaryAnswer:
        """Unpack what the site answered.

        Raises:
            MessageError: it is no update, or does not say how many images it was made of.
        """
        dxo = read_dxo(reply, DataKind.WEIGHT_DIFF)
        images = dxo.get_meta_prop(CANARY_IMAGES_META)
        if type(images) is not int or images < 1:
            raise MessageError("the canary update does not say of how many images it was made")
        return CanaryAnswer(dict(dxo.data), images, stated_steps(dxo))
