"""What an audit adds to the two configurations of somebody else's app."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvflare.app_common.app_constant import AppConstants

from gradward.flare.analytics import LOCAL_EVENT
from gradward.flare.auditor import InversionAuditor
from gradward.flare.experiment import Experiment
from gradward.flare.job_config import Config, class_of, components_of
from gradward.flare.job_export import PACKAGE
from gradward.flare.perturber import Perturbation
from gradward.flare.protocol import SCORE_TASK
from gradward.flare.workflow import AuditDrain

# Ids of their own, so that the job's components keep theirs.
EXPERIMENT, AUDITOR, SENDER = "gradward_experiment", "gradward_auditor", "gradward_sender"
PERTURBATION = "gradward_perturbation"


class AttachError(ValueError):
    """A job that no audit can be attached to; the message says why and what to do."""


@dataclass(frozen=True)
class AuditParts:
    """The parts by the arguments of their constructors, which become JSON.

    Attributes:
        experiment, auditor, perturbation: of the classes of these names; the last may be None.
        drain_timeout: seconds that the audits have after the job's last workflow.

    Raises:
        TypeError, ValueError: an argument of a part, with the offending value.
        AttachError: a perturbation that the guard cannot follow.
    """

    experiment: Mapping[str, Any]
    auditor: Mapping[str, Any]
    perturbation: Mapping[str, Any] | None = None
    drain_timeout: float = 1800.0

    def __post_init__(self) -> None:
        """Build each part once, so that a mistake is met here and not in the federation."""
        Experiment(**self.experiment)
        InversionAuditor(**self.auditor)
        AuditDrain(timeout=self.drain_timeout)
        if self.perturbation is not None:
            Perturbation(**self.perturbation)
            self._guarded_sites()

    def add_to_server(self, config: Config) -> Config:
        """Return a server's configuration with the audit.

        Raises:
            AttachError: its aggregator would refuse what perturbed sites send.
        """
        if self.perturbation is not None:
            _require_differences(config)
        auditor = {**self.auditor, "experiment_id": EXPERIMENT}
        ids = {"experiment_id": EXPERIMENT, "auditor_id": AUDITOR}
        added = [
            _part("experiment.Experiment", EXPERIMENT, self.experiment),
            _part("auditor.InversionAuditor", AUDITOR, auditor),
            _part("run_log.RunLog", "gradward_run_log", ids),
        ]
        theirs = components_of(config)
        # Two receivers would write every value twice.
        if not any(class_of(part).endswith("TBAnalyticsReceiver") for part in theirs):
            added.append(_part("tensorboard.LiveTBAnalyticsReceiver", "gradward_tensorboard", {}))
        drain = {"auditor_id": AUDITOR, "timeout": self.drain_timeout}
        workflows = [*config["workflows"], _part("workflow.AuditDrain", "gradward_drain", drain)]
        return {**config, "workflows": workflows, "components": [*theirs, *added]}

    def add_to_client(self, config: Config, train_task: str) -> Config:
        """Return a client's configuration with the audit of ``train_task``."""
        scorer = {"experiment_id": EXPERIMENT, "analytics_sender_id": SENDER}
        added = [
            _part("experiment.Experiment", EXPERIMENT, self.experiment),
            _part("witness.TrainingWitness", "gradward_witness", {"train_task": train_task}),
            _nvflare_part("widgets.streaming.AnalyticsSender", SENDER, {}),
        ]
        if not any(
            LOCAL_EVENT in part.get("args", {}).get("events_to_convert", [])
            for part in components_of(config)
        ):
            events = {"events_to_convert": [LOCAL_EVENT]}
            converter = "widgets.convert_to_fed_event.ConvertToFedEvent"
            added.append(_nvflare_part(converter, "gradward_event_to_fed", events))
        answers = {"tasks": [SCORE_TASK], "executor": _built("scorer.LeakageScorer", scorer)}
        executors = [*config.get("executors", []), answers]
        audited = {
            **config,
            "executors": executors,
            "components": [*components_of(config), *added],
        }
        return audited if self.perturbation is None else self._perturbed(audited, train_task)

    def _perturbed(self, config: Config, train_task: str) -> Config:
        perturbation = {**(self.perturbation or {}), "analytics_sender_id": SENDER}
        script = {
            "train_task": train_task,
            "experiment_id": EXPERIMENT,
            "perturbation_id": PERTURBATION,
        }
        guard = {
            "experiment_id": EXPERIMENT,
            "train_task": train_task,
            "sites": self._guarded_sites(),
        }
        tasks = [
            train_task,
            AppConstants.TASK_VALIDATION,
            AppConstants.TASK_SUBMIT_MODEL,
            SCORE_TASK,
        ]
        # The receipt fits the unchanged update only: the guard comes before their filters.
        first = {"tasks": tasks, "filters": [_built("guard.PerturbationGuard", guard)]}
        return {
            **config,
            "components": [
                *components_of(config),
                _part("perturber.Perturbation", PERTURBATION, perturbation),
                _part("script_perturbation.ScriptPerturbation", "gradward_script", script),
            ],
            "task_result_filters": [first, *config.get("task_result_filters", [])],
        }

    def _guarded_sites(self) -> list[str] | None:
        """Sites that are perturbed; None for all."""
        settings = self.perturbation or {}
        per_site = settings.get("per_site") or {}
        if settings.get("settings") is None:
            return [site for site, values in per_site.items() if values is not None]
        if None in per_site.values():
            raise AttachError(
                "a perturbation of all sites but some cannot be guarded: name those with one "
                "under 'per_site' and leave 'settings' out"
            )
        return None


def _require_differences(server: Config) -> None:
    for part in components_of(server):
        if part.get("args", {}).get("expected_data_kind") == "WEIGHTS":
            raise AttachError(
                f"the component {part.get('id')!r} expects WEIGHTS, but the sites of a job with a "
                "perturbation send WEIGHT_DIFF; set its expected_data_kind"
            )


def _part(path: str, name: str, args: Mapping[str, Any]) -> Config:
    return {"id": name, **_built(path, args)}


def _built(path: str, args: Mapping[str, Any]) -> Config:
    return {"path": f"{PACKAGE}.flare.{path}", "args": dict(args)}


def _nvflare_part(path: str, name: str, args: Mapping[str, Any]) -> Config:
    return {"id": name, "path": f"nvflare.app_common.{path}", "args": dict(args)}
