"""The one question about its own images that the audit asks a site, and its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.shareable import Shareable

from gradward.attacks.spec import ATTACK_NAMES
from gradward.flare.states import MessageError, read_dxo
from gradward.metrics.scores import Scores

SCORE_TASK = "score_reconstruction"
PROTOCOL = 2
SCORE_NAMES = tuple(item.name for item in fields(Scores))
# Of the reason of a refusal, in characters.
REASON_LENGTH = 300
# A round's number names files at the site.
MOST_ROUNDS = 10**6
# Whether the site knew which of its images made the update, or compared with all of them.
KNOWN, UNKNOWN = MEMBERSHIP = ("known", "unknown")

Message = TypeVar("Message")


@dataclass(frozen=True)
class ScoreRequest:
    """Reconstruction and control of one attack on one update, for the site that sent it.

    Attributes:
        site: the site that sent the update.
        round: round of the update.
        attack: name of the attack, one of :data:`~gradward.attacks.spec.ATTACK_NAMES` or of the
            site's own list: it counts answers and names files, so that no server may think of new
            ones.
        images: ``(n, C, H, W)`` float32 in [0, 1].
        control: the same attack on the wrong update, same shape, or None if it failed.
        public_checksum: of the server's public images; the site scores with the same or not at all.
    """

    site: str
    round: int
    attack: str
    images: np.ndarray
    control: np.ndarray | None
    public_checksum: str

    def to_shareable(self) -> Shareable:
        """Pack as ``APP_DEFINED``: raw arrays in a ``COLLECTION`` trip NVFlare's filters."""
        return DXO(DataKind.APP_DEFINED, data={"protocol": PROTOCOL, **vars(self)}).to_shareable()

    @classmethod
    def from_shareable(
        cls, shareable: Shareable, image_shape: tuple[int, ...], more_attacks: Sequence[str] = ()
    ) -> ScoreRequest:
        """Unpack and check.

        Args:
            shareable: the task's data.
            image_shape: ``(C, H, W)`` of this job.
            more_attacks: names beside ours that the site answers to.

        Raises:
            MessageError: anything that is not such a request.
        """
        request = _unpack(cls, shareable)
        if type(request.round) is not int or not 0 <= request.round < MOST_ROUNDS:
            raise MessageError("the scoring request names no round")
        known = (*ATTACK_NAMES, *more_attacks)
        if type(request.attack) is not str or request.attack not in known:
            raise MessageError(
                f"the scoring request names none of the attacks {known}; a site lists others under "
                "scoring.attacks in its local/gradward.json"
            )
        if type(request.site) is not str or type(request.public_checksum) is not str:
            raise MessageError("the scoring request names no site and public images")
        _check_images("reconstruction", request.images, image_shape)
        if request.control is not None:
            _check_images("control", request.control, image_shape)
            if request.control.shape != request.images.shape:
                raise MessageError("reconstruction and control differ in number")
        return request


@dataclass(frozen=True)
class ScoreReply:
    """A site's answer: rounded scalars, or the reason why there are none.

    Attributes:
        status: ``"ok"`` or ``"refused"``.
        reason: why, when refused.
        real, control, prior: scores by the names in :data:`SCORE_NAMES`; None where undefined.
        membership: one of :data:`MEMBERSHIP`, where scored.
    """

    status: str
    reason: str = ""
    real: dict[str, float | None] | None = None
    control: dict[str, float | None] | None = None
    prior: dict[str, float | None] | None = None
    membership: str | None = None

    def to_shareable(self) -> Shareable:
        """Pack as ``APP_DEFINED``."""
        return DXO(DataKind.APP_DEFINED, data={"protocol": PROTOCOL, **asdict(self)}).to_shareable()

    @classmethod
    def from_shareable(cls, shareable: Shareable) -> ScoreReply:
        """Unpack and check.

        Raises:
            MessageError: anything that is not such an answer.
        """
        reply = _unpack(cls, shareable)
        if reply.status not in ("ok", "refused"):
            raise MessageError(f"the scoring reply has the unknown status {reply.status!r}")
        if reply.status == "ok" and (reply.real is None or reply.membership not in MEMBERSHIP):
            raise MessageError("the scoring reply is 'ok' but holds no scores and membership")
        if reply.status == "refused" and reply.membership is not None:
            raise MessageError("the scoring reply is refused but states a membership")
        for scores in (reply.real, reply.control, reply.prior):
            _check_scores(scores)
        return reply


def _unpack(kind: type[Message], shareable: Shareable) -> Message:
    data = dict(read_dxo(shareable, DataKind.APP_DEFINED).data)
    if data.pop("protocol", None) != PROTOCOL:
        raise MessageError(f"a {kind.__name__} of protocol {PROTOCOL} was expected")
    try:
        return kind(**data)
    except TypeError:
        raise MessageError(f"the {kind.__name__} has missing or unknown fields") from None


def _check_images(what: str, images: Any, image_shape: tuple[int, ...]) -> None:
    if not isinstance(images, np.ndarray) or images.dtype != np.float32:
        raise MessageError(f"the {what} is not a float32 array")
    if images.ndim != 4 or images.shape[1:] != image_shape or not len(images):
        raise MessageError(
            f"the {what} has shape {images.shape[:8]}, this job's images are {image_shape}"
        )
    if not np.isfinite(images).all() or images.min() < 0 or images.max() > 1:
        raise MessageError(f"the {what} leaves the range [0, 1]")


def _check_scores(scores: Mapping[str, Any] | None) -> None:
    if scores is None:
        return
    if set(scores) != set(SCORE_NAMES):
        raise MessageError("the scoring reply does not hold exactly the agreed scores")
    for name, value in scores.items():
        if value is not None and (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise MessageError(f"the score {name!r} is not a finite number")
