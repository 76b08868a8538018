"""What a job asks for, put together from its own parts on the server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants

from gradward.flare.auditor import InversionAuditor
from gradward.flare.experiment import Experiment
from gradward.flare.job_config import (
    CLIENT_CONFIG,
    SERVER_CONFIG,
    Config,
    defence,
    defences_of,
    name_in,
    read_config,
    read_meta,
    servers_sites,
    training_workflow,
)
from gradward.report.run_folder import CONFIGURATION_SCHEMA, DP_SGD
from gradward.training_settings import DpSgdSettings

_EXPERIMENT = (
    "model",
    "model_options",
    "dataset",
    "image_size",
    "channels",
    "num_classes",
    "training",
    "per_site",
    "public_set",
    "seed",
)
_AUDIT = ("attacks", "budget", "subject", "every_n_rounds", "sites", "keep_reconstructions")


def describe_job(
    fl_ctx: FLContext,
    experiment_id: str,
    auditor_id: str,
    other_defences: Sequence[Mapping[str, Any]] = (),
) -> Config:
    """Return the content of ``configuration.json``.

    Args:
        fl_ctx: of the server's process of the job.
        experiment_id, auditor_id: ids of the job's components; a job may lack them.
        other_defences: entries for the sites whose app is not the server's.

    Raises:
        ValueError, OSError: a file of the job cannot be read.
    """
    engine, job = fl_ctx.get_engine(), fl_ctx.get_job_id()
    workspace = engine.get_workspace()
    app = Path(workspace.get_app_config_dir(job))
    meta = read_meta(fl_ctx)
    sites = sorted(client.name for client in engine.get_clients())
    experiment = engine.get_component(experiment_id)
    workflow = training_workflow(read_config(app, SERVER_CONFIG) or {})
    task, arguments = workflow or (AppConstants.TASK_TRAIN, {})
    rounds = arguments.get("num_rounds")
    defences = _dp_sgd(experiment, sites) if isinstance(experiment, Experiment) else []
    own = servers_sites(meta)
    client = read_config(app, CLIENT_CONFIG) or {}
    defences += defences_of(client, task, sites if own is None else own)
    defences += [dict(entry) for entry in other_defences]
    return {
        "schema": CONFIGURATION_SCHEMA,
        "job": name_in(meta) or job,
        "rounds": rounds if type(rounds) is int else None,
        "sites": sites,
        "experiment": _chosen(experiment, Experiment, _EXPERIMENT),
        "audit": _chosen(engine.get_component(auditor_id), InversionAuditor, _AUDIT),
        "defences": [_for_all(entry, sites) for entry in defences],
    }


def _chosen(component: Any, kind: type, names: Sequence[str]) -> Config:
    if not isinstance(component, kind):
        return {}
    return {name: getattr(component, name) for name in names}


def _dp_sgd(experiment: Experiment, sites: Sequence[str]) -> list[Config]:
    """Return an entry for each group of sites with the same settings of DP-SGD."""
    groups: dict[str, list[str]] = {}
    for site in sites:
        settings = experiment.training_values(site).get("dp_sgd")
        if settings is not None:
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(site)
    return [
        defence(group, DP_SGD, DpSgdSettings.__name__, json.loads(settings))
        for settings, group in groups.items()
    ]


def _for_all(entry: Config, sites: Sequence[str]) -> Config:
    """Return an entry that names no sites where it is for all of them."""
    named = entry["sites"]
    return {**entry, "sites": None} if named is not None and set(named) >= set(sites) else entry
