"""Where a party's data, settings and private folder are. No job can change any of it.

Order: the environment (``GRADWARD_PRIVATE``, ``GRADWARD_DEVICE``, ``GRADWARD_DATA``), then
``local/gradward.json`` of the party's kit, whose ``sites.<name>`` goes over its top level because
simulated sites share one folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.fl_constant import FLContextKey, WorkspaceConstants
from nvflare.apis.fl_context import FLContext

from gradward.data.catalog import dataset_spec
from gradward.flare.policies import (
    CertifiedPolicy,
    GatePolicy,
    PerturbationPolicy,
    ScoringPolicy,
    SiteSettingsError,
    read_policies,
)
from gradward.flare.private_folder import is_simulated, open_private_folders

SETTINGS_FILE = "gradward.json"
SETTINGS_KEYS = (
    "data",
    "device",
    "audit_devices",
    "threads",
    "scope",
    "scoring",
    "perturbation",
    "gate",
    "certified",
)
# The first errors of a job say most, and a server that causes a million shall not fill the disk.
MOST_ERROR_BYTES = 2**20


@dataclass(frozen=True)
class Site:
    """One party (a site or the server) during one job.

    Attributes:
        name: its NVFlare identity.
        private: its private root; nothing below it ever leaves.
        job_folder: its private folder of this job.
        data: its own data specifications by data set name.
        device: where it computes.
        audit_devices: of a server, where its attack workers compute, one after the other.
        threads: CPU threads of its computations; None leaves torch's choice.
        scoring: its policy for the audit's questions.
        perturbation: its own limits of the perturbation.
        gate: what the leakage gate may tell.
        certified: whether it takes part under a certificate, and only so.
    """

    name: str
    private: Path
    job_folder: Path
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str = "cpu"
    audit_devices: tuple[str, ...] = ("cpu",)
    threads: int | None = None
    scoring: ScoringPolicy = field(default_factory=ScoringPolicy)
    perturbation: PerturbationPolicy = field(default_factory=PerturbationPolicy)
    gate: GatePolicy = field(default_factory=GatePolicy)
    certified: CertifiedPolicy = field(default_factory=CertifiedPolicy)

    def dataset_spec(self, name: str) -> dict[str, Any]:
        """Where the data set ``name`` is for this party.

        Raises:
            SiteSettingsError: the party's own settings give a relative path.
            DataError: there is no such data set.
        """
        own = self.data.get(name, {})
        for values in (own, own.get("public", {})):
            for key in ("path", "root", "patients"):
                if key in values and not Path(str(values[key])).is_absolute():
                    raise SiteSettingsError(
                        f"'data.{name}' in local/{SETTINGS_FILE}: {key!r} must be an absolute path"
                    )
        return dataset_spec(name, self.data)

    def apply_threads(self) -> None:
        """Limit torch to this party's threads."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)


def read_settings(folder: Path, site: str) -> dict[str, Any]:
    """Read ``gradward.json`` in ``folder`` for ``site``; without the file, no settings.

    Raises:
        SiteSettingsError: not JSON, or an entry that does not exist or has the wrong type.
    """
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SiteSettingsError(
            f"local/{SETTINGS_FILE} is not readable JSON: {error}; correct it"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("sites", {}), dict):
        raise SiteSettingsError(f"local/{SETTINGS_FILE} and its 'sites' must be JSON objects")
    settings = {key: value for key, value in content.items() if key != "sites"}
    settings.update(content.get("sites", {}).get(site, {}))
    unknown = sorted(set(settings) - set(SETTINGS_KEYS))
    if unknown:
        raise SiteSettingsError(
            f"local/{SETTINGS_FILE} has unknown entries {unknown}; known are {list(SETTINGS_KEYS)}"
        )
    return settings


def choose_device(
    setting: str | None, entry: str = "'device' in local/gradward.json or GRADWARD_DEVICE"
) -> str:
    """Return the device a party computes on.

    A site's own setting wins. Without one, a GPU is used where NVFlare gave one to the job (it
    then sets ``CUDA_VISIBLE_DEVICES``), otherwise the CPU.

    Args:
        setting: the party's own.
        entry: where it stands, for messages.

    Raises:
        SiteSettingsError: the chosen device is not there.
    """
    if setting is None:
        granted = bool(os.environ.get("CUDA_VISIBLE_DEVICES", "").strip())
        return "cuda:0" if granted and torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(setting)
    except (RuntimeError, TypeError):
        raise SiteSettingsError(
            f"device {setting!r} is not known; correct {entry}, e.g. to 'cpu' or 'cuda:0'"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SiteSettingsError(
            f"device {setting!r} was chosen, but {torch.cuda.device_count()} CUDA devices are "
            f"visible; correct {entry}"
        )
    return setting


def open_site(fl_ctx: FLContext) -> Site:
    """Resolve everything a party needs to know about itself in this job.

    Raises:
        SiteSettingsError: the settings cannot be used.
    """
    private, job_folder = open_private_folders(fl_ctx)
    name = fl_ctx.get_identity_name()
    local = Path(fl_ctx.get_engine().get_workspace().get_root_dir())
    settings = read_settings(local / WorkspaceConstants.SITE_FOLDER_NAME, name)
    _check_scope(settings.get("scope"), fl_ctx)
    threads = settings.get("threads", 1 if is_simulated(fl_ctx) else None)
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise SiteSettingsError(
            f"'threads' in local/gradward.json must be an integer of at least 1, got {threads!r}"
        )
    data = settings.get("data", {})
    if not isinstance(data, dict) or not all(isinstance(spec, dict) for spec in data.values()):
        raise SiteSettingsError("'data' in local/gradward.json must map data set names to objects")
    device = choose_device(os.environ.get("GRADWARD_DEVICE") or settings.get("device"))
    return Site(
        name=name,
        private=private,
        job_folder=job_folder,
        data=data,
        device=device,
        audit_devices=choose_audit_devices(settings.get("audit_devices", [device])),
        threads=threads,
        **vars(read_policies(settings)),
    )


def choose_audit_devices(settings: Any) -> tuple[str, ...]:
    """Return the devices that a server's attack workers compute on, one after the other.

    Args:
        settings: what ``local/gradward.json`` says of ``audit_devices``.

    Raises:
        SiteSettingsError: no list of devices, or one of them is not there.
    """
    listed = isinstance(settings, list) and all(isinstance(setting, str) for setting in settings)
    if not listed or not settings:
        raise SiteSettingsError(
            f"'audit_devices' in local/gradward.json must be a list of devices, got {settings!r}"
        )
    entry = "'audit_devices' in local/gradward.json"
    return tuple(choose_device(setting, entry) for setting in settings)


def _check_scope(wanted: Any, fl_ctx: FLContext) -> None:
    """Refuse a job that runs without the filters of the site's own ``privacy.json``.

    NVFlare asks whether a scope exists by the policy it read when the site started, and takes the
    filters from the file as it is now: after a change, and until the restart, a job that names a
    scope which does not exist would run without any.
    """
    if wanted is None:
        return
    if not isinstance(wanted, str) or not wanted:
        raise SiteSettingsError(
            f"'scope' in local/gradward.json must be a name of local/privacy.json, got {wanted!r}"
        )
    if fl_ctx.get_prop(FLContextKey.EFFECTIVE_JOB_SCOPE_NAME) != wanted:
        raise SiteSettingsError(
            f"this site works under the privacy scope {wanted!r} only, which this job does not run "
            "under; restart the site if its local/privacy.json has changed"
        )


def record_private_error(site: Site) -> None:
    """Keep the current traceback at home: NVFlare streams a site's log to the server.

    A disk that is full loses the traceback and nothing else: whoever is handling an error must not
    meet another one here.
    """
    log = site.job_folder / "errors.log"
    with contextlib.suppress(OSError):
        log.touch(mode=0o600, exist_ok=True)
        if log.stat().st_size > MOST_ERROR_BYTES:
            return
        with log.open("a", encoding="utf-8") as stream:
            traceback.print_exc(file=stream)
