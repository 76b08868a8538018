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

import torch
from nvflare.private.fed.simulator.simulator_const import SimulatorConstants

from gradward.data import data_root
from gradward.flare import simulator_main
from gradward.flare.job_folder import RunError, check_job, set_seed
from gradward.flare.party_logs import troubles, why_it_ended
from gradward.flare.perturber_report import fits_under_way
from gradward.flare.site import SETTINGS_FILE
from gradward.json_files import JsonFileError, read_json_object
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
# NVFlare's simulator binds a socket at `<temporary folder>/pymp-xxxxxxxx/listener-xxxxxxxx`, and a
# socket's name has at most 108 bytes on Linux, 104 on macOS, one of them the closing zero.
_LONGEST_TEMPORARY_FOLDER = (107 if sys.platform == "linux" else 103) - 32
RUN_FILE = "run.json"
LOG_FILE = "simulator.log"


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

    @property
    def troubles(self) -> list[str]:
        """First errors, also of a site that the others did without."""
        return troubles(self.folder / "workspace")

    @property
    def reason(self) -> str:
        """Why it ended."""
        return why_it_ended(self.exit_code, self.folder / "workspace", self.folder / LOG_FILE)


def sites_of(job: Path, number: int | None) -> list[str]:
    """Names of a job's sites: those its ``meta.json`` lists, or ``site-1`` to ``site-N``.

    Raises:
        RunError: as :func:`check_job`, or no number of sites.
    """
    check_job(job)
    properties = read_json_object(job / "meta.json").get("custom_props")
    listed = properties.get("sites", []) if isinstance(properties, dict) else []
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
        watch: called about twice a second with the entries of the server's status file and, under
            ``fits``, with what sites tell that fit a perturber.

    Raises:
        RunError: the folder holds something else than a run, the job or the settings cannot be
            read, there is no such GPU, or the temporary folder's name is too long.
        OSError: the folder cannot be written.
    """
    # Before an earlier run is removed.
    check_job(job)
    _check_gpus(gpu)
    _check_temporary_folder(tempfile.gettempdir())
    if site_settings is not None:
        _check_settings(site_settings)
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
        command = ["simulator", str(copy), "-w", str(workspace.resolve()), "-c", ",".join(sites)]
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


def _follow(
    arguments: list[str], log: int, workspace: Path, watch: Callable[[dict[str, Any]], None]
) -> int:
    """Run NVFlare's command line in a process group of its own and end the group with it.

    Where this process is killed, the group ends by itself, see :mod:`simulator_main`.
    """
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    if (root := data_root()) is not None:
        # The simulator changes the current directory, from which this was found.
        environment["GRADWARD_DATA"] = str(root)
    theirs, ours = os.pipe()
    process = subprocess.Popen(
        [sys.executable, simulator_main.__file__, str(theirs), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        pass_fds=[theirs],
        env=environment,
    )
    os.close(theirs)
    server = workspace / "server" / SimulatorConstants.JOB_NAME
    private = workspace.with_name(f"{workspace.name}.private")
    try:
        while process.poll() is None:
            status = read_status(server)
            watch({**status, "fits": fits_under_way(private)} if status else {})
            time.sleep(0.5)
        watch(read_status(server))
        return process.returncode
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)


def _check_gpus(gpu: str | None) -> None:
    if gpu and not torch.cuda.is_available():
        raise RunError(
            f"--gpu {gpu} was given, but PyTorch sees no CUDA device here; leave --gpu out to "
            "compute on the CPU, or see what `gradward doctor` says of this machine"
        )


def _check_temporary_folder(folder: str) -> None:
    length = len(os.fsencode(folder))
    if length > _LONGEST_TEMPORARY_FOLDER:
        raise RunError(
            f"the temporary folder {folder} has a name of {length} bytes, too long for a socket of "
            f"the simulator's; set TMPDIR to a folder of at most {_LONGEST_TEMPORARY_FOLDER}"
        )


def _check_settings(file: Path) -> None:
    try:
        read_json_object(file)
    except JsonFileError as error:
        raise RunError(f"--site-settings: {error}") from None


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
