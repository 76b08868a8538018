"""An audit for somebody else's PyTorch job: more configuration, the same code."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from nvflare.app_common.app_constant import AppConstants

from gradward import __version__
from gradward.flare.attach_parts import AttachError, AuditParts
from gradward.flare.job_config import (
    CLIENT_CONFIG,
    FOLLOWED,
    META,
    SERVER_CONFIG,
    Config,
    read_config,
    training_workflow,
)
from gradward.flare.job_export import PACKAGE, tell_run_log, write_config, write_custom_note


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
    workflow = training_workflow(servers[0])
    task, notes = (workflow[0], ()) if workflow else (AppConstants.TASK_TRAIN, (_unknown(),))
    attached = Attached(out, task, notes)
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
    tell_run_log(out)
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
    """Read a configuration that is not audited yet; None if it is absent."""
    try:
        config = read_config(folder, name)
    except ValueError as error:
        raise AttachError(str(error)) from None
    if f'"{PACKAGE}.flare.' in json.dumps(config):
        raise AttachError(
            f"{folder / name} has parts of {PACKAGE} already; attach to the job without"
        )
    return config


def _replace(folder: Path, name: str, content: Config) -> None:
    """Write ``name`` as JSON in place of whatever format it had."""
    for file in folder.glob(f"{name}.*"):
        file.unlink()
    write_config(folder / f"{name}.json", content)
