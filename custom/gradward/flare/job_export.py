"""NVFlare's job exporter, brought to the form in which `jobs/` is kept: for people to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.apis.job_def import ALL_SITES, SERVER_SITE_NAME
from nvflare.job_config.api import FedJob
from nvflare.job_config.fed_app_config import FedAppConfig
from nvflare.job_config.fed_job_config import FedJobConfig

from gradward.flare.job_config import (
    SERVER_CONFIG,
    class_of,
    components_of,
    other_apps_defences,
)

PACKAGE = "gradward"
DEFAULT_APP = "app"

CUSTOM_NOTE = """\
The classes of this job are in the installed package `gradward`, on server and sites.

NVFlare builds classes outside its own list only for jobs that bring custom code, or where
`class_allow_list` in a party's local/resources.json names them. This folder makes the job one of
the first kind, so that it runs in the simulator and in POC as it is. Where the allow list names
`gradward`, the folder can go, and with it the need for the BYOC right.
"""
CUSTOM_NOTE_FILE = "README.txt"

_META_ORDER = ("name", "min_clients", "mandatory_clients", "resource_spec", "deploy_map")
_CONFIG_ORDER = ("format_version", "server", "workflows", "executors", "components")


class ReadableJobConfig(FedJobConfig):
    """Writes every setting that differs from a component's default, and nothing else."""

    brings_custom_folder = True

    def generate_job_config(self, job_root: str) -> None:
        """Export below ``job_root``; then order keys and tasks, which NVFlare keeps in a set."""
        super().generate_job_config(job_root)
        folder = Path(job_root) / self.job_name
        _rewrite(folder / "meta.json", _META_ORDER)
        for app in self.fed_apps:
            for file in (folder / app / "config").glob("config_fed_*.json"):
                _rewrite(file, _CONFIG_ORDER)
            if self.brings_custom_folder:
                write_custom_note(folder / app)
        tell_run_log(folder)

    def _get_args(self, component: Any, custom_dir: str) -> dict[str, Any]:
        args: dict[str, Any] = super()._get_args(component, custom_dir)
        if type(component).__module__.partition(".")[0] != PACKAGE:
            return args
        # NVFlare compares an attribute with the default of its argument. A component that stores
        # something else than it was given, such as {} for None, would state its defaults.
        stated = getattr(component, "_always_serialize_args", ())
        return {
            name: value
            for name, value in args.items()
            if name in stated or not _is_default(component, args, name)
        }


class AppsJob(FedJob):
    """A job whose sites may be divided into groups, each with an app of its own.

    The server shares the app ``"app"`` with the first group. A group's app is a target by its name:
    NVFlare's own ``FedJob`` knows one app for all sites, or one for each site.
    """

    _deployed: bool

    def __init__(
        self,
        name: str,
        min_clients: int,
        groups: Mapping[str, Sequence[str]],
        meta_props: Mapping[str, Any],
        brings_custom_folder: bool,
    ) -> None:
        """Prepare an empty job.

        Args:
            name: of the job.
            min_clients: sites that it needs.
            groups: sites by the name of their app; :data:`DEFAULT_APP` comes first. When it is
                alone, its app goes to every site there is.
            meta_props: further entries of ``meta.json``.
            brings_custom_folder: whether apps get a ``custom`` folder, see :data:`CUSTOM_NOTE`.
        """
        super().__init__(name=name, min_clients=min_clients)
        self.job = ReadableJobConfig(name, min_clients, meta_props=dict(meta_props))
        self.job.brings_custom_folder = brings_custom_folder
        self.set_app_packages([PACKAGE])
        self.groups = {app: list(sites) for app, sites in groups.items()}

    def set_app_packages(self, app_packages: list[str]) -> None:
        """Name the packages that are installed where the job runs."""
        self.job.set_app_packages(app_packages)

    def target(self, app: str) -> str:
        """Return what NVFlare calls the sites of one app."""
        return ALL_SITES if len(self.groups) == 1 else app

    def _set_all_apps(self) -> None:
        if len(self.groups) == 1:
            super()._set_all_apps()
            return
        if self._deployed:
            return
        server = self._deploy_map[SERVER_SITE_NAME].get_app_config()
        for app, sites in self.groups.items():
            client = self._deploy_map[app].get_app_config()
            first = app == DEFAULT_APP
            self.job.add_fed_app(app, FedAppConfig(server if first else None, client))
            for site in ([SERVER_SITE_NAME] if first else []) + sites:
                self.job.set_site_app(site, app)
        self._deployed = True


def write_custom_note(app: Path) -> None:
    """Give an app of a job folder its ``custom`` folder with a note on what it is for."""
    (app / "custom").mkdir(exist_ok=True)
    (app / "custom" / CUSTOM_NOTE_FILE).write_text(CUSTOM_NOTE, encoding="utf-8")


def tell_run_log(job: Path) -> None:
    """Give a job's ``RunLog`` the defences of the apps that its server does not get.

    Args:
        job: folder whose server's configuration is JSON.
    """
    found = other_apps_defences(job)
    for file in job.glob(f"*/config/{SERVER_CONFIG}.json") if found else ():
        content = json.loads(file.read_text(encoding="utf-8"))
        for part in components_of(content):
            if class_of(part) == "RunLog":
                part["args"]["other_defences"] = found
        write_config(file, content)


def write_config(file: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON file of a job folder."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _rewrite(file: Path, order: Sequence[str]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    tasks = [task for entry in content.get("executors", []) for task in entry["tasks"]]
    for direction in ("task_data_filters", "task_result_filters"):
        for entry in content.get(direction, []):
            known = [task for task in tasks if task in entry["tasks"]]
            entry["tasks"] = known + sorted(set(entry["tasks"]) - set(known))
    first = {key: content[key] for key in order if key in content}
    write_config(file, first | content)


def _is_default(component: Any, args: Mapping[str, Any], name: str) -> bool:
    """Whether the component would be the same had the argument ``name`` not been given."""
    try:
        without = type(component)(**{key: args[key] for key in args if key != name})
    except (TypeError, ValueError):
        return False
    attribute = name if name in vars(component) else f"_{name}"
    return bool(vars(without).get(attribute) == vars(component).get(attribute))
