"""An audited federation as an NVFlare recipe: the same job as a folder of `jobs/`, in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvflare.apis.filter import Filter
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.shareablegenerators.full_model_shareable_generator import (
    FullModelShareableGenerator,
)
from nvflare.app_common.widgets.convert_to_fed_event import ConvertToFedEvent
from nvflare.app_common.widgets.streaming import AnalyticsSender
from nvflare.job_config.defs import FilterType
from nvflare.recipe.sim_env import SimEnv
from nvflare.recipe.spec import ExecEnv, Recipe

from gradward import __version__
from gradward.flare.aggregator import BUFFERS, ReproducibleAggregator
from gradward.flare.analytics import LOCAL_EVENT
from gradward.flare.auditor import InversionAuditor
from gradward.flare.canary import CANARY_TASK
from gradward.flare.experiment import Experiment
from gradward.flare.gate import LeakageGate
from gradward.flare.guard import PerturbationGuard
from gradward.flare.job_export import DEFAULT_APP, AppsJob
from gradward.flare.persistor import ExperimentPersistor
from gradward.flare.perturber import Perturbation
from gradward.flare.protocol import SCORE_TASK
from gradward.flare.run_log import RunLog
from gradward.flare.scorer import LeakageScorer
from gradward.flare.simulator import site_names
from gradward.flare.tensorboard import LiveTBAnalyticsReceiver
from gradward.flare.trainer import LocalTrainer
from gradward.flare.update_filters import WithholdBuffers
from gradward.flare.workflow import AuditDrain, AuditedScatterAndGather
from gradward.report.records import CANARY

TRAINER_TASKS = (
    AppConstants.TASK_TRAIN,
    AppConstants.TASK_VALIDATION,
    AppConstants.TASK_SUBMIT_MODEL,
)
TASK_REQUEST_INTERVAL = 0.5


@dataclass(frozen=True)
class SiteDefence:
    """What the sites do about leakage; nothing by default.

    Attributes:
        perturbation: what they train on in place of their images, per site where it says so.
        guard: lets nothing leave that was not trained on perturbed images.
        update_filters: change the update on its way out, in this order.
        gate: attacks the update as it would leave, and acts by the result.

    Raises:
        ValueError: parts that do not work together.
    """

    perturbation: Perturbation | None = None
    guard: PerturbationGuard | None = None
    update_filters: Sequence[Filter] = ()
    gate: LeakageGate | None = None

    def __post_init__(self) -> None:
        """Refuse what would only be noticed in the first round."""
        if self.guard is not None and self.perturbation is None:
            raise ValueError("a guard lets nothing pass without a perturbation; add one")
        if self.gate is not None and self.gate.action == "strengthen" and self.perturbation is None:
            raise ValueError("a gate with action 'strengthen' needs a perturbation; add one")

    @property
    def filters(self) -> list[Filter]:
        """All filters, in the order in which a result must pass them."""
        # The guard's receipt fits the unchanged update only; the gate judges what really leaves.
        ends = ([self.guard], list(self.update_filters), [self.gate])
        return [item for part in ends for item in part if item is not None]

    @property
    def withholds_buffers(self) -> bool:
        """Whether updates may come without BatchNorm's statistics."""
        return any(isinstance(item, WithholdBuffers) for item in self.update_filters)


@dataclass(frozen=True)
class SiteGroup:
    """Sites whose defence is another one than the job's.

    Attributes:
        sites: their names.
        defence: theirs.
    """

    sites: Sequence[str]
    defence: SiteDefence


class AuditRecipe(Recipe):
    """Federated averaging with an audit beside it.

    Run it with ``recipe.execute(env)``, where ``env`` is NVFlare's ``SimEnv``, ``PocEnv`` or
    ``ProdEnv``, or write it as a job folder with ``recipe.export(folder)``. The recipes of the
    shipped jobs are in :mod:`gradward.flare.shipped_jobs`, for copying.
    """

    def __init__(
        self,
        *,
        name: str,
        sites: Sequence[str],
        experiment: Experiment,
        auditor: InversionAuditor,
        num_rounds: int = 3,
        min_clients: int | None = None,
        wait_time_after_min_received: int = 300,
        train_timeout: int = 600,
        drain_timeout: float = 1800,
        defence: SiteDefence | None = None,
        other_defences: Mapping[str, SiteGroup] | None = None,
        description: str = "",
        resources: Mapping[str, Mapping[str, Any]] | None = None,
        custom_folder: bool = True,
    ) -> None:
        """Put the job together.

        Args:
            name: of the job and its folder.
            sites: names of the sites it is meant for, in the order of a simulation.
            experiment: model, data by name, hyperparameters and seed.
            auditor: the attacks, their budget, and which rounds and sites they are mounted on; with
                ``subject="canary"`` the sites answer its orders for canaries.
            num_rounds: rounds of training.
            min_clients: quorum of a round and of the job; one less than there are sites by
                default, so that one site's fault ends nothing.
            wait_time_after_min_received: seconds to wait for the others once the quorum answered;
                a round ends at once when all have answered.
            train_timeout: seconds after which a round ends whoever is missing.
            drain_timeout: seconds that open audits have after training.
            defence: of all sites; None for no defence.
            other_defences: groups of sites with another one, by a name of letters, digits and
                underscores.
            description: one line for ``meta.json``.
            resources: what a site's share of the job needs, as NVFlare's ``resource_spec``, e.g.
                ``{"site-1": {"num_of_gpus": 1, "mem_per_gpu_in_GiB": 8}}``.
            custom_folder: False leaves out the ``custom`` folders. The job then needs no BYOC
                right, but server and sites whose ``class_allow_list`` names ``gradward``.

        Raises:
            TypeError, ValueError: with the offending value.
        """
        _check_sites(sites, other_defences or {})
        quorum = max(1, len(sites) - 1) if min_clients is None else min_clients
        if isinstance(quorum, bool) or not isinstance(quorum, int) or not 0 < quorum <= len(sites):
            raise ValueError(
                f"min_clients must be a number of sites from 1 to {len(sites)}, got {quorum!r}"
            )
        for label, part, kind in (
            ("experiment", experiment, Experiment),
            ("auditor", auditor, InversionAuditor),
        ):
            if not isinstance(part, kind):
                raise TypeError(f"{label} must be of type {kind.__name__}, got {part!r}")
        self.sites = list(sites)
        groups = {DEFAULT_APP: SiteGroup(self.sites, defence or SiteDefence())}
        for group, item in (other_defences or {}).items():
            groups[f"{DEFAULT_APP}_{group}"] = item
        elsewhere = {site for item in (other_defences or {}).values() for site in item.sites}
        apps = {app: item.sites for app, item in groups.items()}
        apps[DEFAULT_APP] = [site for site in self.sites if site not in elsewhere]
        job = AppsJob(
            name,
            quorum,
            apps,
            meta_props={
                "mandatory_clients": [],
                "custom_props": {
                    "description": description,
                    "sites": self.sites,
                    "version": __version__,
                },
            },
            brings_custom_folder=custom_folder,
        )
        for site, needs in (resources or {}).items():
            job.job.add_resource_spec(site, dict(needs))
        super().__init__(job)
        training = AuditedScatterAndGather(
            min_clients=quorum,
            num_rounds=num_rounds,
            wait_time_after_min_received=wait_time_after_min_received,
            train_timeout=train_timeout,
        )
        withheld = any(item.defence.withholds_buffers for item in groups.values())
        aggregator = ReproducibleAggregator(withheld=BUFFERS if withheld else None)
        job.to_server({"server": {"task_request_interval": TASK_REQUEST_INTERVAL}})
        job.to_server(training, id="train")
        job.to_server(AuditDrain(timeout=drain_timeout), id="drain")
        job.to_server(experiment, id="experiment")
        job.to_server(ExperimentPersistor(), id="persistor")
        job.to_server(FullModelShareableGenerator(), id="shareable_generator")
        job.to_server(aggregator, id="aggregator")
        job.to_server(auditor, id="auditor")
        job.to_server(RunLog(), id="run_log")
        job.to_server(LiveTBAnalyticsReceiver(), id="tensorboard")
        for app, item in groups.items():
            _add_client_app(job, job.target(app), experiment, item.defence, auditor.subject)

    def process_env(self, env: ExecEnv) -> None:
        """Give a simulation the job's own sites: the simulator's are always site-1 to site-N."""
        if isinstance(env, SimEnv) and env.clients is None:
            env.clients = site_names(self.sites, env.num_clients)


def _add_client_app(
    job: AppsJob, target: str, experiment: Experiment, defence: SiteDefence, subject: str
) -> None:
    perturbed = defence.perturbation is not None
    trainer = LocalTrainer(perturbation_id="perturbation" if perturbed else None)
    # What is audited must pass the filters that an update passes.
    if subject == CANARY:
        tasks = (*TRAINER_TASKS, CANARY_TASK)
        job.to(trainer, target, tasks=list(tasks))
    else:
        tasks = (*TRAINER_TASKS, SCORE_TASK)
        job.to(trainer, target, tasks=list(TRAINER_TASKS))
        job.to(LeakageScorer(), target, tasks=[SCORE_TASK])
    job.to(experiment, target, id="experiment")
    if perturbed:
        job.to(defence.perturbation, target, id="perturbation")
    job.to(AnalyticsSender(), target, id="analytics_sender")
    job.to(ConvertToFedEvent(events_to_convert=[LOCAL_EVENT]), target, id="event_to_fed")
    for item in defence.filters:
        job.to(item, target, filter_type=FilterType.TASK_RESULT, tasks=list(tasks))


def _check_sites(sites: Sequence[str], others: Mapping[str, SiteGroup]) -> None:
    if isinstance(sites, str) or not sites or not all(isinstance(site, str) for site in sites):
        raise TypeError(f"sites must be a non-empty list of names, got {sites!r}")
    placed = [site for item in others.values() for site in item.sites]
    for site in [*sites, *placed]:
        if list(sites).count(site) != 1 or placed.count(site) > 1:
            raise ValueError(f"site {site!r} must be once in sites, and in one group at most")
    if placed and len(placed) == len(sites):
        raise ValueError("no site is left with the job's own defence; make one of them `defence`")
    for group in others:
        if not group.isidentifier():
            raise ValueError(f"a group needs a name of letters, digits and '_', got {group!r}")
