"""What the JSON of a job folder says: its workflow, its sites and their defences."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import ALL_SITES, SERVER_SITE_NAME, JobMetaKey
from nvflare.app_common.app_constant import AppConstants
from nvflare.fuel.utils.config_factory import ConfigFactory
from nvflare.private.fed.utils.fed_utils import extract_participants

from gradward.report.run_folder import GATE, GUARD, PERTURBATION, UPDATE_FILTER

SERVER_CONFIG, CLIENT_CONFIG, META = "config_fed_server", "config_fed_client", "meta"
# The workflows whose events the audit follows, and what they call the name of their task.
FOLLOWED = {"ScatterAndGather": "train_task_name", "FedAvg": "task_name"}

Config = dict[str, Any]

_FILTER_KINDS = {"PerturbationGuard": GUARD, "LeakageGate": GATE}
_PERTURBATION_CLASS = "Perturbation"


def read_config(folder: Path, name: str) -> Config | None:
    """Read ``name`` as NVFlare would, in JSON or one of its other formats; None if it is absent.

    Raises:
        ValueError: it cannot be read, or is no object; names the file.
    """
    # JSON first, as NVFlare looks for them.
    files = sorted(folder.glob(f"{name}.*"), key=lambda file: file.suffix != ".json")
    if not files:
        return None
    try:
        if files[0].suffix == ".json":
            config = json.loads(files[0].read_text(encoding="utf-8"))
        else:
            loaded = ConfigFactory.load_config(name + files[0].suffix, [str(folder)])
            config = None if loaded is None else loaded.to_dict()
    except Exception as error:
        # Each of the formats has errors of its own.
        raise ValueError(f"{files[0]} cannot be read: {error}; correct it") from None
    if not isinstance(config, dict):
        raise ValueError(f"{files[0]} must be a JSON object, or HOCON, with a reader installed")
    return config


def run_folder_of(fl_ctx: FLContext) -> Path:
    """Return where the running job's results lie on this party."""
    return Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id()))


def read_meta(fl_ctx: FLContext) -> Config:
    """Read the running job's meta, which NVFlare lays beside its app; empty if there is none.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    workspace = fl_ctx.get_engine().get_workspace()
    file = Path(workspace.get_job_meta_path(fl_ctx.get_job_id()))
    if not file.is_file():
        return {}
    return dict(json.loads(file.read_text(encoding="utf-8")))


def name_in(meta: Config) -> str | None:
    """Return what the job is called by who submitted it."""
    name = meta.get(JobMetaKey.JOB_NAME.value)
    return str(name) if name else None


def training_workflow(server: Config) -> tuple[str, Config] | None:
    """Return the name of the first followed workflow's training task, and its arguments."""
    for workflow in server.get("workflows", []):
        for kind, argument in FOLLOWED.items():
            if class_of(workflow).endswith(kind):
                args = workflow.get("args", {})
                return str(args.get(argument, AppConstants.TASK_TRAIN)), args
    return None


def defences_of(client: Config, train_task: str, sites: Sequence[str]) -> list[Config]:
    """List the defences of one client app, in the order in which an update passes them.

    Args:
        client: the app's ``config_fed_client``.
        train_task: name of the task whose result is an update.
        sites: names of the app's sites.

    Returns:
        Entries of ``configuration.json``, see :class:`gradward.report.run_folder.Defence`. DP-SGD
        is none of them: it is a matter of the experiment.
    """
    found: list[Config] = []
    for part in components_of(client):
        if class_of(part) == _PERTURBATION_CLASS:
            found += _perturbations(part.get("args", {}), sites)
    for chain in client.get("task_result_filters", []):
        if train_task not in chain.get("tasks", []):
            continue
        for part in chain.get("filters", []):
            name, args = class_of(part), dict(part.get("args", {}))
            named = args.pop("sites", None)
            own = [site for site in sites if named is None or site in named]
            if own:
                kind = _FILTER_KINDS.get(name, UPDATE_FILTER)
                found.append(defence(own, kind, name, args))
    return found


def other_apps_defences(job: Path) -> list[Config]:
    """List the defences of those apps of a job folder that its server does not get.

    Raises:
        ValueError, OSError: the folder's files cannot be read.
    """
    deployed = _deployed(read_config(job, META) or {})
    servers = [
        config
        for app in deployed
        if (config := read_config(job / app / "config", SERVER_CONFIG)) is not None
    ]
    workflow = training_workflow(servers[0]) if servers else None
    train_task = workflow[0] if workflow else AppConstants.TASK_TRAIN
    found: list[Config] = []
    for app, parties in deployed.items():
        if not _holds_server(parties):
            client = read_config(job / app / "config", CLIENT_CONFIG) or {}
            found += defences_of(client, train_task, parties)
    return found


def servers_sites(meta: Config) -> list[str] | None:
    """Return the sites that share the server's app, by the job's meta; None for all there are."""
    for parties in _deployed(meta).values():
        if _holds_server(parties) and not _are_all(parties):
            return [party for party in parties if party != SERVER_SITE_NAME]
    return None


def defence(sites: Sequence[str], kind: str, name: str, settings: Mapping[str, Any]) -> Config:
    """Build an entry of ``configuration.json``."""
    return {"sites": list(sites), "kind": kind, "name": name, "settings": dict(settings)}


def components_of(config: Config) -> Sequence[Config]:
    """Return the components of a configuration."""
    components: Sequence[Config] = config.get("components", [])
    return components


def class_of(part: Config) -> str:
    """Name of a part's class; NVFlare takes it as ``path`` or, for its own, as ``name``."""
    return str(part.get("path", part.get("name", ""))).rpartition(".")[2]


def _perturbations(args: Mapping[str, Any], sites: Sequence[str]) -> Iterator[Config]:
    """Yield an entry for each group of sites that a ``Perturbation`` treats alike."""
    shared, per_site = args.get("settings"), args.get("per_site") or {}
    others = [site for site in sites if site not in per_site]
    if shared is not None and others:
        yield defence(others, PERTURBATION, _PERTURBATION_CLASS, shared)
    for site, own in per_site.items():
        if own is not None and site in sites:
            settings = {**(shared or {}), **own}
            yield defence([site], PERTURBATION, _PERTURBATION_CLASS, settings)


def _deployed(meta: Config) -> dict[str, list[str]]:
    """Return the parties of each app by their names."""
    return {
        app: list(extract_participants(parties))
        for app, parties in meta.get("deploy_map", {}).items()
    }


def _holds_server(parties: Sequence[str]) -> bool:
    return SERVER_SITE_NAME in parties or _are_all(parties)


def _are_all(parties: Sequence[str]) -> bool:
    """Whether an app goes to all parties, the server among them; it is then the only one."""
    return any(party.upper() == ALL_SITES for party in parties)
