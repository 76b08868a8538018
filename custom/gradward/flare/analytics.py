"""Scalars on their way to TensorBoard through NVFlare's event system."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE, AnalyticsData, AnalyticsDataType
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import EventScope, FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.server_engine_spec import ServerEngineSpec
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.analytix_utils import create_analytic_dxo, send_analytic_dxo
from nvflare.app_common.widgets.streaming import AnalyticsSender

from gradward.flare.journal import note
from gradward.flare.private_folder import open_private_folders
from gradward.report.records import CANARY, LeakageRecord
from gradward.report.site_folder import SCALARS

LOCAL_EVENT = ANALYTIC_EVENT_TYPE
FEDERATED_EVENT = f"fed.{LOCAL_EVENT}"
# What the server's own values are filed under; NVFlare's name of it differs from run to run.
SERVER = "server"

_ONE = (AnalyticsDataType.SCALAR, AnalyticsDataType.METRIC)
_SEVERAL = (AnalyticsDataType.SCALARS, AnalyticsDataType.METRICS)


def origin_of(fl_ctx: FLContext, sender: str) -> str:
    """Return the name that a streamed value is filed under.

    Args:
        fl_ctx: of the event.
        sender: of the message, as NVFlare names it.
    """
    here = fl_ctx.get_prop(FLContextKey.EVENT_SCOPE) != EventScope.FEDERATION
    return SERVER if here else sender


def stream_scalars(
    fl_ctx: FLContext, sender_id: str, prefix: str, values: Mapping[str, float | None], step: int
) -> None:
    """Send each finite value of a site under ``prefix/name``, and put it on the site's record.

    The site's private ``scalars.log`` has them first: what cannot be entered does not leave. A job
    without the sender, and a disk that is full, still let a site train and score: streaming is a
    mirror, never the record.
    """
    sender = fl_ctx.get_engine().get_component(sender_id)
    told = dict(_finite(prefix, values))
    if not isinstance(sender, AnalyticsSender) or not told:
        return
    try:
        record_scalars(fl_ctx, told, step)
    except OSError as error:
        sender.log_warning(fl_ctx, f"scalars are not streamed: {type(error).__name__}")
        return
    for tag, value in told.items():
        sender.add(tag, value, AnalyticsDataType.SCALAR, global_step=step)


def record_scalars(fl_ctx: FLContext, told: Mapping[str, float], step: int | None) -> None:
    """Enter scalars that are about to leave a site in its private ``scalars.log``.

    Args:
        fl_ctx: of the site.
        told: value by tag.
        step: round they belong to, None without one.

    Raises:
        OSError: they cannot be entered, and may not leave.
    """
    note(open_private_folders(fl_ctx)[1] / SCALARS, {"round": step, "scalars": dict(told)})


def write_scalars(
    component: FLComponent,
    fl_ctx: FLContext,
    prefix: str,
    values: Mapping[str, float | None],
    step: int,
) -> None:
    """Do the same for the server's own values: an ``AnalyticsSender`` never starts there."""
    for tag, value in _finite(prefix, values):
        dxo = create_analytic_dxo(
            tag=tag, value=value, data_type=AnalyticsDataType.SCALAR, global_step=step
        )
        send_analytic_dxo(component, dxo, fl_ctx)


def show_canary(component: FLComponent, engine: ServerEngineSpec, record: LeakageRecord) -> None:
    """Write a canary's scores under ``canary/``; those of live updates the sites stream."""
    if record.subject != CANARY:
        return
    prefix = f"canary/{record.site}/{record.attack}{'/control' if record.control else ''}"
    with engine.new_context() as fl_ctx:
        write_scalars(component, fl_ctx, prefix, record.scores(), record.round)


def scalars_in(message: Shareable) -> Iterator[tuple[str, int | None, float]]:
    """Yield tag, step and value of each finite scalar in the data of an analytics event.

    Of several values under one tag each gets a tag of its own, ``tag/name``. The step is None where
    the sender gave none.
    """
    data = AnalyticsData.from_dxo(from_shareable(message))
    if data is None:
        return
    values = {data.tag: data.value} if data.data_type in _ONE else {}
    if data.data_type in _SEVERAL:
        values = {f"{data.tag}/{name}": value for name, value in data.value.items()}
    for tag, value in values.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield tag, data.step, float(value)


def _finite(prefix: str, values: Mapping[str, float | None]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if value is not None and math.isfinite(value):
            yield f"{prefix}/{name}", float(value)
