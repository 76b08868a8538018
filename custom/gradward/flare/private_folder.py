"""A party's private root: nothing below it ever leaves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nvflare.apis.fl_context import FLContext
from nvflare.private.fed.simulator.simulator_const import SimulatorConstants

PRIVATE_FOLDER = "gradward"
RUN_MARKER = "gradward_run"


def is_simulated(fl_ctx: FLContext) -> bool:
    """Whether the job runs in NVFlare's simulator."""
    return bool(fl_ctx.get_job_id() == SimulatorConstants.JOB_NAME)


def open_private_folders(fl_ctx: FLContext) -> tuple[Path, Path]:
    """Return a party's private root and its folder of this job, whatever its settings say.

    Raises:
        OSError: they cannot be made.
    """
    name, job_id = fl_ctx.get_identity_name(), fl_ctx.get_job_id()
    workspace = fl_ctx.get_engine().get_workspace()
    root = Path(workspace.get_root_dir())
    simulated = is_simulated(fl_ctx)
    if override := os.environ.get("GRADWARD_PRIVATE"):
        private = Path(override) / name
    elif simulated:
        private = root.parent.with_name(root.parent.name + ".private") / name
    else:
        private = root / PRIVATE_FOLDER
    job_folder = private / "jobs" / job_id
    if simulated:
        _forget_earlier_simulation(Path(workspace.get_run_dir(job_id)), job_folder)
    for folder in (private, job_folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return private, job_folder


def _forget_earlier_simulation(run_folder: Path, job_folder: Path) -> None:
    """Start a simulation with an empty private job folder.

    The simulator gives every run the same job id and wipes its workspace, but not the private
    folders beside it: what an earlier run answered would count against this one.
    """
    marker = run_folder / RUN_MARKER
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    shutil.rmtree(job_folder, ignore_errors=True)
