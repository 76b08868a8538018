"""An audit for somebody else's PyTorch job: more configuration, the same code."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from nvflare.app_common.app_constant import AppConstants
from nvflare.fuel.utils.config_factory import ConfigFactory

from gradward import __version__
from gradward.flare.attach_parts import (
    FOLLOWED,
    AttachError,
    AuditParts,
    Config,
    training_task,
)
from gradward.flare.job_export import PACKAGE, write_config, write_custom_note

SERVER_CONFIG, CLIENT_CONFIG, META = "config_fed_server", "config_fed_client", "meta"


@dataclass(frozen=True)
class Attached:
    """What was written.

    Attributes:
        folder: the audited job.
        train_task: name of the task whose replies are audited.
        notes: what the person who attaches should know.
    """

    folder: Path
    train_task: str
    notes: tuple[str, ...] = ()


def attach_audit(job: Path, out: Path, parts: AuditParts) -> Attached:
    """Write an audited copy of a job folder.

    Args:
        job: an NVFlare job folder whose sites answer the training task with ``WEIGHTS`` or
            ``WEIGHT_DIFF``.
        out: folder to write, which must not exist.
        parts: the audit; its experiment has the job's network, its data by name, and the
            hyperparameters of its training script.

    Raises:
        AttachError: the folder is no job, is audited already, or ``out`` exists.
    """
    if out.exists():
        raise AttachError(f"{out} exists already; choose another folder")
    configs = {
        (app, name): config
        for app in _apps(job)
        for name in (SERVER_CONFIG, CLIENT_CONFIG)
        if (config := _read(app / "config", name)) is not None
    }
    servers = [config for (_, name), config in configs.items() if name == SERVER_CONFIG]
    if len(servers) != 1 or len(configs) < 2:
        raise AttachError(
            f"{job} needs one app with a {SERVER_CONFIG} and at least one with a {CLIENT_CONFIG} "
            f"in its config folder; found {len(servers)} and {len(configs) - len(servers)}"
        )
    task = training_task(servers[0])
    attached = Attached(out, task or AppConstants.TASK_TRAIN, () if task else (_unknown(),))
    audited = {
        (app.relative_to(job), name): parts.add_to_server(config)
        if name == SERVER_CONFIG
        else parts.add_to_client(config, attached.train_task)
        for (app, name), config in configs.items()
    }
    shutil.copytree(job, out)
    for (app, name), config in audited.items():
        _replace(out / app / "config", name, config)
        if not (out / app / "custom").is_dir():
            write_custom_note(out / app)
    meta = _read(out, META) or {}
    properties = {**meta.get("custom_props", {}), PACKAGE: __version__}
    name = f"{meta.get('name', job.name)}_audited"
    _replace(out, META, {**meta, "name": name, "custom_props": properties})
    return attached


def _apps(job: Path) -> list[Path]:
    """Return the app folders that a job's ``meta`` deploys."""
    meta = _read(job, META)
    if meta is None or not isinstance(meta.get("deploy_map"), dict) or not meta["deploy_map"]:
        raise AttachError(f"{job} is not a job folder: it has no meta.json with a deploy_map")
    apps = [job / app for app in meta["deploy_map"]]
    for app in apps:
        if not (app / "config").is_dir():
            raise AttachError(f"the app {app.name!r} of {job} has no config folder")
    return apps


def _unknown() -> str:
    return (
        f"none of the job's workflows is one of {' and '.join(FOLLOWED)}: the audit sees updates "
        "only if the workflow fires their events BEFORE_TRAIN_TASK and AFTER_CONTRIBUTION_ACCEPT "
        f"for the task {AppConstants.TASK_TRAIN!r}"
    )


def _read(folder: Path, name: str) -> Config | None:
    """Read ``name`` as NVFlare would, in JSON or one of its other formats; None if it is absent."""
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
        raise AttachError(f"{files[0]} cannot be read: {error}; correct it") from None
    if not isinstance(config, dict):
        raise AttachError(f"{files[0]} must be a JSON object, or HOCON, with a reader installed")
    if f'"{PACKAGE}.flare.' in json.dumps(config):
        raise AttachError(f"{files[0]} has parts of {PACKAGE} already; attach to the job without")
    return config


def _replace(folder: Path, name: str, content: Config) -> None:
    """Write ``name`` as JSON in place of whatever format it had."""
    for file in folder.glob(f"{name}.*"):
        file.unlink()
    write_config(folder / f"{name}.json", content)
