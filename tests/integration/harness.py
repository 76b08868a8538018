"""Builds small variants of the shipped jobs and runs them in NVFlare's simulator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradward.flare.simulator import SimulatedRun, run_in_simulator
from gradward.flare.submission import Submitted
from gradward.report.records import FILE_NAME, LeakageRecord, read_records

ROOT = Path(__file__).parents[2]
PROBES = Path(__file__).parent / "components"

TINY_AUDIT = {
    "attacks": [{"name": "batchnorm", "max_images": 64}],
    "budget": {"evaluations": 12, "image_evaluations": 400},
    "score_timeout": 120,
}


@dataclass
class JobVariant:
    """A copy of ``jobs/quickstart`` that a test bends to its needs."""

    folder: Path
    server: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, target: Path) -> JobVariant:
        """Copy a shipped job, with the tests' probes as its own code."""
        folder = target / name
        shutil.copytree(ROOT / "jobs" / name, folder)
        shutil.copytree(PROBES, folder / "app" / "custom", dirs_exist_ok=True)
        config = folder / "app" / "config"
        return cls(
            folder,
            json.loads((config / "config_fed_server.json").read_text()),
            json.loads((config / "config_fed_client.json").read_text()),
        )

    def component(self, side: dict[str, Any], name: str) -> dict[str, Any]:
        """Arguments of a component."""
        return next(item["args"] for item in side["components"] if item["id"] == name)

    def experiment(self, **changes: Any) -> None:
        """Change the experiment on both sides."""
        for side in (self.server, self.client):
            self.component(side, "experiment").update(changes)

    def audit(self, **changes: Any) -> None:
        """Change the auditor's arguments."""
        self.component(self.server, "auditor").update(changes)

    def workflow(self, **changes: Any) -> None:
        """Change the training workflow's arguments."""
        self.server["workflows"][0]["args"].update(changes)

    def add(self, side: str, path: str, **arguments: Any) -> None:
        """Add a component."""
        config = self.server if side == "server" else self.client
        config["components"].append(
            {"id": path.rsplit(".", 1)[-1].lower(), "path": path, "args": arguments}
        )

    def add_filter(self, direction: str, tasks: Sequence[str], path: str, **arguments: Any) -> None:
        """Add a filter to the sites."""
        self.client[direction].append(
            {"tasks": list(tasks), "filters": [{"path": path, "args": arguments}]}
        )

    def write(self) -> Path:
        """Write the job and return its folder."""
        config = self.folder / "app" / "config"
        (config / "config_fed_server.json").write_text(json.dumps(self.server))
        (config / "config_fed_client.json").write_text(json.dumps(self.client))
        return self.folder


def simulate(
    job: JobVariant,
    folder: Path,
    sites: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> SimulatedRun:
    """Run the variant in ``folder``; ``settings`` become the sites' gradward.json."""
    site_settings = None
    if settings is not None:
        site_settings = folder.parent / f"{folder.name}-settings.json"
        site_settings.write_text(json.dumps(settings))
    return run_in_simulator(
        job.write(), folder, sites=sites, site_settings=site_settings, **options
    )


def records_of(run: SimulatedRun | Submitted) -> list[LeakageRecord]:
    """The leakage records of a run, simulated or submitted."""
    return list(read_records(run.folder / FILE_NAME))


def logs_of(run: SimulatedRun) -> str:
    """Everything the run logged, server and sites."""
    parts = [(run.folder / "simulator.log").read_text(errors="replace")]
    parts += [file.read_text(errors="replace") for file in run.folder.rglob("*log*.txt")]
    return "\n".join(parts)


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of one site's event files: tag to (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
