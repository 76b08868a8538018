"""What may leave a site, message by message.

Every function checks a message piece by piece and builds a new one from the pieces that it checked:
what no rule names cannot travel along. Types are compared exactly, because a subclass of ``str`` or
``dict`` can carry more than it shows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.filter import Filter, FilterChainType, FilterContextKey
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply

from gradward.flare.precision import is_coarse
from gradward.flare.protocol import REASON_LENGTH, ScoreReply
from gradward.flare.states import MessageError

_HEADERS = {ReservedHeaderKey.RC, ReservedHeaderKey.CONTENT_TYPE}
_RETURN_CODES = {
    value for name, value in vars(ReturnCode).items() if name.isupper() and value != ReturnCode.OK
}


class Blocked(Exception):
    """A message may not leave; the reason holds nothing of its content."""


@dataclass(frozen=True)
class TensorForm:
    """Shape and type that a tensor of the model must have, and whether it may be missing."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    may_lack: bool = False


def comes_in(own: Filter, fl_ctx: FLContext) -> bool:
    """Whether what a filter is shown is no result on its way out of a site.

    A policy file can be shared with the server, as in the simulator: results come in there.
    """
    return bool(
        own.get_prop(FilterContextKey.CHAIN_TYPE) == FilterChainType.TASK_DATA_CHAIN
        or fl_ctx.get_prop(FLContextKey.FILTER_DIRECTION) == FilterKey.IN
    )


def error_reply(message: Shareable) -> Shareable | None:
    """Return a new error reply if ``message`` is one, None if it claims to be a result.

    Raises:
        Blocked: an error reply that carries something, or an unknown code.
    """
    headers = _headers(message)
    code = headers.get(ReservedHeaderKey.RC, ReturnCode.OK)
    if type(code) is not str:
        raise Blocked("the return code is not a string")
    if code == ReturnCode.OK:
        return None
    if code not in _RETURN_CODES:
        raise Blocked("the return code is unknown")
    if set(message) != {ReservedHeaderKey.HEADERS}:
        raise Blocked("an error reply may carry no data")
    return make_reply(code)


def read_result(message: Shareable, kind: DataKind, meta: Collection[str] = ()) -> DXO:
    """Return the data object of a result.

    Args:
        message: the reply; neither it nor its headers may hold anything else.
        kind: the only kind that this task answers with.
        meta: names that its meta data may have.

    Raises:
        Blocked: with what is wrong.
    """
    if _headers(message).get(ReservedHeaderKey.CONTENT_TYPE) != "DXO":
        raise Blocked("the result is no data object")
    if set(message) != {ReservedHeaderKey.HEADERS, "DXO"}:
        raise Blocked("the result carries more than a data object")
    content = message["DXO"]
    if type(content) is not dict or set(content) != {"kind", "data", "meta"}:
        raise Blocked("the data object does not have its three parts")
    # NVFlare's kinds are strings of an enumeration of its own.
    if not isinstance(content["kind"], str) or content["kind"] != kind:
        raise Blocked(f"the data object is not of kind {kind.value}")
    for part in ("data", "meta"):
        _names(content[part], f"the {part}")
    if not set(content["meta"]) <= set(meta):
        raise Blocked("the meta data has entries that are not on the list")
    return DXO(kind, data=content["data"], meta=content["meta"])


def checked_state(data: Mapping[str, Any], model: Mapping[str, TensorForm]) -> dict[str, Any]:
    """Return copies of a state's arrays in the model's order.

    Raises:
        Blocked: names, shapes or types are not the model's, or a value is not finite.
    """
    missing = [name for name in model if name not in data and not model[name].may_lack]
    if missing or not set(data) <= set(model):
        raise Blocked("the tensors are not those of this job's model")
    state = {}
    for name, form in model.items():
        if name not in data:
            continue
        value = data[name]
        if type(value) is not np.ndarray or value.dtype != form.dtype or value.shape != form.shape:
            raise Blocked(f"{name} does not have the shape and type of this job's model")
        if not np.isfinite(value).all():
            raise Blocked(f"{name} holds values that are not finite")
        # Assignment into a new array leaves the memory behind a view, and its annotations, here.
        state[name] = np.empty(form.shape, form.dtype)
        state[name][...] = value
    return state


def checked_metrics(data: Mapping[str, Any], allowed: Collection[str]) -> dict[str, float]:
    """Return listed metrics, each a float in [0, 1].

    Raises:
        Blocked: a name that is not on the list, or another value.
    """
    if not data or not set(data) <= set(allowed):
        raise Blocked("the metrics are not those on the list")
    for name, value in data.items():
        if type(value) is not float or not 0 <= value <= 1:
            raise Blocked(f"the metric {name} is not a number in [0, 1]")
    return dict(data)


def checked_score_reply(message: Shareable) -> ScoreReply:
    """Return the answer to the audit: agreed names, rounded numbers, a short reason.

    Raises:
        Blocked: anything else.
    """
    read_result(message, DataKind.APP_DEFINED)
    try:
        reply = ScoreReply.from_shareable(message)
    except MessageError as error:
        raise Blocked(str(error)) from None
    if type(reply.status) is not str or type(reply.reason) is not str:
        raise Blocked("status and reason of the scoring reply must be strings")
    if len(reply.reason) > REASON_LENGTH or not reply.reason.isprintable():
        raise Blocked("the reason of the scoring reply is too long or not printable")
    scores = (reply.real, reply.control, reply.prior)
    if reply.status == "refused" and any(item is not None for item in scores):
        raise Blocked("a refusal may hold no scores")
    if reply.status == "ok" and reply.reason:
        raise Blocked("an answer with scores needs no reason")
    for item in scores:
        if item is None:
            continue
        _names(item, "the scores")
        if not all(is_coarse(name, value) for name, value in item.items()):
            raise Blocked("the scores are not rounded")
    real, control, prior = (None if item is None else dict(item) for item in scores)
    return ScoreReply(reply.status, reply.reason, real, control, prior, reply.membership)


def _headers(message: Shareable) -> Mapping[str, Any]:
    if type(message) is not Shareable:
        raise Blocked("the reply is no message of NVFlare")
    headers = message.get(ReservedHeaderKey.HEADERS)
    _names(headers, "the headers")
    if not set(headers) <= _HEADERS:
        raise Blocked("the message has headers that are not on the list")
    return dict(headers)


def _names(values: Any, what: str) -> None:
    if type(values) is not dict or not all(type(name) is str for name in values):
        raise Blocked(f"{what} must be an object with names")
