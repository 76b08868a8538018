"""Weights & Biases, which NVFlare's own receiver gives only a part of what is streamed."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.widgets.streaming import AnalyticsReceiver

from gradward.flare.analytics import FEDERATED_EVENT, LOCAL_EVENT, origin_of, scalars_in
from gradward.flare.job_config import run_folder_of
from gradward.report.run_folder import read_configuration

_MODES = ("online", "offline", "disabled")
# The axis of every chart. W&B's own step only ever grows, and scores of a round may come rounds
# later: NVFlare's receiver, which takes the round for that step, drops them.
_AXIS = "round"


class LiveWandBReceiver(AnalyticsReceiver):
    """Writes each site's values, and the server's own, as a W&B run of its own.

    The runs of a job form a group. Where the job has a
    :class:`~gradward.flare.run_log.RunLog`, its configuration is theirs. What W&B refuses is a
    warning, the first time; the federation goes on.
    """

    def __init__(self, project: str = "gradward", mode: str = "offline", group: str | None = None):
        """Check every argument.

        Args:
            project: in W&B.
            mode: ``"online"``, ``"offline"`` (files in the server's run folder, for ``wandb sync``)
                or ``"disabled"``.
            group: of the runs; None is the job's name.

        Raises:
            TypeError, ValueError: with the offending value.
            ImportError: ``wandb`` is not installed where the server runs.
        """
        super().__init__(events=[LOCAL_EVENT, FEDERATED_EVENT])
        for name, value in (("project", project), ("group", group)):
            if value is not None and (not isinstance(value, str) or not value):
                raise TypeError(f"{name} must be a non-empty string, got {value!r}")
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
        try:
            self._wandb = importlib.import_module("wandb")
        except ImportError:
            raise ImportError(
                "Weights & Biases is not installed here; on the server: pip install wandb"
            ) from None
        self.project, self.mode, self.group = project, mode, group
        self._runs: dict[str, Any] = {}
        self._is_broken = False

    def initialize(self, fl_ctx: FLContext) -> None:
        """Begin anew; a site's run begins with its first value, when the configuration is there."""
        self._runs, self._is_broken = {}, False

    def save(self, fl_ctx: FLContext, shareable: Shareable, record_origin: str) -> None:
        """Write one value."""
        if self._is_broken:
            return
        record_origin = origin_of(fl_ctx, record_origin)
        try:
            if record_origin not in self._runs:
                self._runs[record_origin] = self._begin(fl_ctx, record_origin)
            for tag, step, value in scalars_in(shareable):
                self._runs[record_origin].log({tag: value, _AXIS: step or 0})
        except Exception as error:
            self._is_broken = True
            self.log_warning(
                fl_ctx,
                f"Weights & Biases gets nothing from here on ({type(error).__name__}: {error}); "
                "the run goes on, and scalars.jsonl has all values",
                fire_event=False,
            )

    def finalize(self, fl_ctx: FLContext) -> None:
        """End the runs, which sends what is left."""
        for run in self._runs.values():
            run.finish()

    def _begin(self, fl_ctx: FLContext, name: str) -> Any:
        folder = run_folder_of(fl_ctx)
        configuration = read_configuration(folder)
        run = self._wandb.init(
            project=self.project,
            group=self.group or (configuration.job if configuration else fl_ctx.get_job_id()),
            name=name,
            mode=self.mode,
            dir=str(folder),
            config=asdict(configuration) if configuration else None,
            # One process has a run for each site.
            reinit="create_new",
        )
        run.define_metric("*", step_metric=_AXIS)
        return run
