"""Runs a job in NVFlare's simulator, shows how far it is, and collects what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvflare.private.fed.simulator.simulator_const import SimulatorConstants

from gradward.data import data_root
from gradward.flare.site import SETTINGS_FILE
from gradward.report.records import FILE_NAME
from gradward.report.run_folder import CONFIGURATION_FILE, SCALARS_FILE, UPDATES_FILE
from gradward.report.status import STATUS_FILE, read_status

TENSORBOARD = "tb_events"
COLLECTED = (
    FILE_NAME,
    CONFIGURATION_FILE,
    UPDATES_FILE,
    SCALARS_FILE,
    STATUS_FILE,
    TENSORBOARD,
    "report",
    "reconstructions",
    "cross_site_val",
)
RUN_FILE = "run.json"
LOG_FILE = "simulator.log"


class RunError(RuntimeError):
    """A run that cannot start, or that NVFlare ended with an error."""


@dataclass(frozen=True)
class SimulatedRun:
    """A finished run.

    Attributes:
        folder: the run folder: ``leakage.jsonl``, ``tb_events/``, ``report/``, ``workspace/`` and,
            beside it, ``workspace.private/<site>/``.
        exit_code: the simulator's.
    """

    folder: Path
    exit_code: int


def sites_of(job: Path, number: int | None) -> list[str]:
    """Names of a job's sites: those its ``meta.json`` lists, or ``site-1`` to ``site-N``.

    Raises:
        RunError: no readable ``meta.json``, or no number of sites.
    """
    try:
        meta = json.loads((job / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{job} is not a job folder: its meta.json cannot be read ({error})"
        ) from None
    listed = meta.get("custom_props", {}).get("sites", [])
    if number is None:
        if not listed:
            raise RunError("the job's meta.json lists no sites; say how many with --sites")
        number = len(listed)
    return site_names(listed, number)


def site_names(listed: Sequence[str], number: int) -> list[str]:
    """Return the first ``number`` of the listed sites, filled up with ``site-1`` and so on."""
    extra = (f"site-{index}" for index in range(1, 10_000))
    names = [*map(str, listed), *(name for name in extra if name not in listed)]
    return names[:number]


def run_in_simulator(
    job: Path,
    folder: Path,
    *,
    sites: Sequence[str],
    threads: int | None = None,
    seed: int | None = None,
    gpu: str | None = None,
    site_settings: Path | None = None,
    watch: Callable[[dict[str, Any]], None] = lambda status: None,
) -> SimulatedRun:
    """Run ``job`` and collect its results in ``folder``.

    Args:
        job: NVFlare job folder.
        folder: run folder; an earlier run in it is replaced.
        sites: names of the simulated sites.
        threads: sites that run at the same time; all by default.
        seed: replaces the job's.
        gpu: as NVFlare's ``--gpu``, e.g. ``"0,1"``; None computes on the CPU.
        site_settings: a ``gradward.json`` for the simulated sites and the server.
        watch: called about twice a second with the entries of the server's status file.

    Raises:
        RunError: the folder holds something else than a run, or the job cannot be read.
    """
    _clear(folder)
    folder.mkdir(parents=True)
    workspace = folder / "workspace"
    (workspace / "local").mkdir(parents=True)
    if site_settings is not None:
        shutil.copy(site_settings, workspace / "local" / SETTINGS_FILE)
    (folder / RUN_FILE).write_text(
        json.dumps({"job": job.name, "sites": list(sites), "seed": seed}, indent=2)
    )
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / job.name
        shutil.copytree(job, copy)
        if seed is not None:
            set_seed(copy, seed)
        command = [sys.executable, "-m", "nvflare.cli", "simulator", str(copy)]
        command += ["-w", str(workspace.resolve()), "-c", ",".join(sites)]
        command += ["--gpu", gpu] if gpu else ["-t", str(threads or len(sites))]
        try:
            with (folder / LOG_FILE).open("wb") as log:
                code = _follow(command, log.fileno(), workspace, watch)
        finally:
            # Also of a run that was interrupted: what was scored is worth keeping.
            _collect(folder)
    return SimulatedRun(folder, code)


def server_folder(folder: Path) -> Path:
    """The server's run folder of a simulated run."""
    return folder / "workspace" / "server" / SimulatorConstants.JOB_NAME


def set_seed(job: Path, seed: int) -> None:
    """Replace the seed of the job's experiments, on the server and on the sites alike.

    Raises:
        RunError: no component of the job has a seed.
    """
    found = False
    for file in job.glob("*/config/config_fed_*.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        for component in config.get("components", []):
            if "seed" in component.get("args", {}):
                component["args"]["seed"] = seed
                found = True
        file.write_text(json.dumps(config, indent=2), encoding="utf-8")
    if not found:
        raise RunError("no component of this job has a 'seed'; --seed cannot be used with it")


def _follow(
    command: list[str], log: int, workspace: Path, watch: Callable[[dict[str, Any]], None]
) -> int:
    """Run the simulator in a process group of its own and end the group with it."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    if (root := data_root()) is not None:
        # The simulator changes the current directory, from which this was found.
        environment["GRADWARD_DATA"] = str(root)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env=environment,
    )
    server = workspace / "server" / SimulatorConstants.JOB_NAME
    try:
        while process.poll() is None:
            watch(read_status(server))
            time.sleep(0.5)
        watch(read_status(server))
        return process.returncode
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _clear(folder: Path) -> None:
    if not folder.exists():
        return
    if not (folder / RUN_FILE).is_file() and any(folder.iterdir()):
        raise RunError(
            f"{folder} is not empty and holds no earlier run; choose another --workspace"
        )
    shutil.rmtree(folder)


def _collect(folder: Path) -> None:
    """Bring the server's results to the run folder."""
    for name in COLLECTED:
        source = server_folder(folder) / name
        if name == TENSORBOARD and source.is_dir():
            # `tensorboard --logdir runs` would show a run twice that is there twice.
            shutil.move(source, folder / name)
        elif source.is_dir():
            shutil.copytree(source, folder / name)
        elif source.is_file():
            shutil.copy(source, folder / name)
