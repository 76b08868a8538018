"""What the report needs to know of a run beside its leakage, written while it happens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from gradward.batchnorm import is_batchnorm_buffer
from gradward.flare.analytics import FEDERATED_EVENT, LOCAL_EVENT, origin_of, scalars_in
from gradward.flare.configuration import describe_job
from gradward.flare.job_config import run_folder_of
from gradward.flare.line_file import LineFile
from gradward.flare.receipt import stated_mode
from gradward.flare.states import MessageError, read_dxo
from gradward.report.run_folder import (
    CONFIGURATION_FILE,
    NONE,
    SCALARS_FILE,
    SEEN,
    UPDATES_FILE,
    UPDATES_SCHEMA,
    WITHHELD,
    ScalarRecord,
    UpdateRecord,
    parse_defence,
    read_scalars,
    read_updates,
)
from gradward.whole_files import whole_file


class RunLog(FLComponent):
    """Writes ``configuration.json``, ``updates.jsonl`` and ``scalars.jsonl`` in the run folder.

    The server has all of it already: the job that it was sent, the updates that it accepted, and
    what was streamed to it, whichever receivers the job has. It follows any workflow that fires
    NVFlare's events, as :class:`~gradward.flare.auditor.InversionAuditor` does. After a restart of
    the server it goes on where it was. What cannot be written is a warning; the run goes on.
    """

    def __init__(
        self,
        experiment_id: str = "experiment",
        auditor_id: str = "auditor",
        other_defences: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Check every argument.

        Args:
            experiment_id: id of the job's :class:`~gradward.flare.experiment.Experiment`.
            auditor_id: id of the job's :class:`~gradward.flare.auditor.InversionAuditor`.
            other_defences: what the sites do whose app is not the server's, as entries of
                ``configuration.json``; recipe and ``gradward attach`` write it. The server's own
                app holds the configuration of its sites, which is read from there.

        Raises:
            TypeError, ValueError: with the offending value.
        """
        super().__init__()
        for name, value in (("experiment_id", experiment_id), ("auditor_id", auditor_id)):
            if not isinstance(value, str) or not value:
                raise TypeError(f"{name} must be a non-empty string, got {value!r}")
        for entry in other_defences or ():
            try:
                parse_defence(entry)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"other_defences has no such entry: {entry!r} ({error})") from None
        self.experiment_id = experiment_id
        self.auditor_id = auditor_id
        self.other_defences = None if other_defences is None else list(map(dict, other_defences))
        self._forget()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Follow the run."""
        handler = {
            EventType.START_RUN: self._start,
            AppEventType.BEFORE_TRAIN_TASK: self._task_sent,
            AppEventType.AFTER_CONTRIBUTION_ACCEPT: self._accepted,
            LOCAL_EVENT: self._streamed,
            FEDERATED_EVENT: self._streamed,
        }.get(event_type)
        if handler is not None:
            self._try(handler.__name__, fl_ctx, partial(handler, fl_ctx))

    def _forget(self) -> None:
        self._updates: LineFile | None = None
        self._scalars: LineFile | None = None
        self._known_updates: set[tuple[str, int]] = set()
        self._known_scalars: set[tuple[str, str, int]] = set()
        self._model_has_buffers: bool | None = None
        self._warned: set[str] = set()

    def _try(self, what: str, fl_ctx: FLContext, action: Callable[[], None]) -> None:
        """Do something that may fail; warn the first time, for a full disk stays full."""
        try:
            action()
        except Exception as error:
            if what not in self._warned:
                self._warned.add(what)
                self.log_warning(
                    fl_ctx,
                    f"the run's log is incomplete ({type(error).__name__}: {error}); the run goes "
                    "on, its report will lack something",
                    fire_event=False,
                )

    def _start(self, fl_ctx: FLContext) -> None:
        self._forget()
        folder = run_folder_of(fl_ctx)
        for part in (self._write_configuration, self._open_updates, self._open_scalars):
            self._try(part.__name__, fl_ctx, partial(part, folder, fl_ctx))

    def _open_updates(self, folder: Path, fl_ctx: FLContext) -> None:
        file = LineFile(folder / UPDATES_FILE)
        self._known_updates = {(item.site, item.round) for item in read_updates(folder)}
        self._updates = file

    def _open_scalars(self, folder: Path, fl_ctx: FLContext) -> None:
        file = LineFile(folder / SCALARS_FILE)
        self._known_scalars = {(item.site, item.tag, item.step) for item in read_scalars(folder)}
        self._scalars = file

    def _write_configuration(self, folder: Path, fl_ctx: FLContext) -> None:
        content = describe_job(
            fl_ctx, self.experiment_id, self.auditor_id, self.other_defences or ()
        )
        with whole_file(folder / CONFIGURATION_FILE) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())

    def _task_sent(self, fl_ctx: FLContext) -> None:
        """Learn from the first task whether the model has BatchNorm statistics at all."""
        task = fl_ctx.get_prop(AppConstants.TRAIN_SHAREABLE)
        if self._model_has_buffers is None and isinstance(task, Shareable):
            self._model_has_buffers = _has_buffers(read_dxo(task, DataKind.WEIGHTS))

    def _accepted(self, fl_ctx: FLContext) -> None:
        result, peer = fl_ctx.get_prop(AppConstants.TRAINING_RESULT), fl_ctx.get_peer_context()
        # NVFlare's FedAvg tells of failures by the same event.
        accepted = fl_ctx.get_prop(AppConstants.AGGREGATION_ACCEPTED, True)
        if self._updates is None or not isinstance(result, Shareable) or not accepted or not peer:
            return
        try:
            update = read_dxo(result, DataKind.WEIGHT_DIFF, DataKind.WEIGHTS)
        except MessageError:
            return
        number = result.get_cookie(
            AppConstants.CONTRIBUTION_ROUND, fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        )
        site = peer.get_identity_name()
        if type(number) is not int or (site, number) in self._known_updates:
            return
        absent = WITHHELD if self._model_has_buffers else NONE
        buffers = SEEN if _has_buffers(update) else absent
        record = UpdateRecord(site, number, stated_mode(update.meta), buffers)
        self._updates.append({"schema": UPDATES_SCHEMA, **asdict(record)})
        self._known_updates.add((site, number))

    def _streamed(self, fl_ctx: FLContext) -> None:
        message = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
        if self._scalars is None or not isinstance(message, Shareable):
            return
        site = origin_of(fl_ctx, message.get_peer_prop(ReservedKey.IDENTITY_NAME, None))
        for tag, step, value in scalars_in(message):
            # What was there at the start was streamed before a restart.
            if step is None or (site, tag, step) not in self._known_scalars:
                self._scalars.append(asdict(ScalarRecord(str(site), tag, step or 0, value)))


def _has_buffers(model: DXO) -> bool:
    return any(map(is_batchnorm_buffer, model.data))
