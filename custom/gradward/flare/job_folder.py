"""A job folder before it runs: can it be read, and with which seed."""

from __future__ import annotations

import json
from pathlib import Path

from gradward.json_files import JsonFileError, read_json_object


class RunError(RuntimeError):
    """A run that cannot start; says why and what to do."""


def check_job(job: Path) -> None:
    """Make sure that everything in a job folder that should be JSON is.

    NVFlare tells of a comma too many in each party's log, long after the start.

    Raises:
        RunError: no job folder, or a file of it cannot be read; with its name and line.
    """
    try:
        read_json_object(job / "meta.json")
        configs = sorted(job.glob("*/config/*.json"))
        for file in configs:
            read_json_object(file)
    except JsonFileError as error:
        if not (job / "meta.json").is_file():
            raise RunError(
                f"{job} is not a job folder: it has no meta.json; `gradward export quickstart` "
                "writes one to start from"
            ) from None
        raise RunError(str(error)) from None


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
