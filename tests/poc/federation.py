"""Federations of real processes on this machine, by the project's own scripts or provisioned."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from nvflare.fuel.flare_api.api_spec import NoConnection
from nvflare.fuel.flare_api.flare_api import new_secure_session

from gradward.flare.auditor import InversionAuditor
from gradward.flare.experiment import Experiment
from gradward.flare.recipe import AuditRecipe
from gradward.flare.submission import Submitted, submit_job
from gradward.report.records import LeakageRecord

from ..integration.harness import ROOT, TINY_AUDIT, JobVariant

SITES = ("site-1", "site-2", "site-3")
BIN = Path(sys.executable).parent
ADMIN, LEAD = "admin@gradward.example", "lead@gradward.example"
RESEARCHER = "researcher@gradward.example"


def environment(**more: str) -> dict[str, str]:
    """As a user's shell has it, without the sample data, with this Python first."""
    kept = {name: value for name, value in os.environ.items() if name != "GRADWARD_DATA"}
    return kept | {
        "PATH": f"{BIN}{os.pathsep}{kept['PATH']}",
        "PYTHONPATH": str(ROOT / "custom"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "80",
        **more,
    }


def run(command: Sequence[str | Path], timeout: float = 300.0, **more: str) -> str:
    """Run a command that must end well; return what it printed."""
    finished = subprocess.run(
        [str(word) for word in command],
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert finished.returncode == 0, finished.stdout[-4000:]
    return finished.stdout


def tiny_job(target: Path, custom: bool = True) -> JobVariant:
    """The quickstart with a budget that takes seconds."""
    target.mkdir(parents=True, exist_ok=True)
    job = JobVariant.of("quickstart", target)
    job.audit(**TINY_AUDIT)
    job.workflow(num_rounds=2)
    job.write()
    if not custom:
        for file in sorted((job.folder / "app" / "custom").iterdir()):
            file.unlink()
        (job.folder / "app" / "custom").rmdir()
    return job


def short_recipe() -> AuditRecipe:
    """One round of the quickstart, in Python."""
    return AuditRecipe(
        name="short",
        sites=SITES,
        experiment=Experiment("bn_cnn", "histology", [32, 32], 3, 2, seed=7),
        auditor=InversionAuditor([{"name": "batchnorm"}], {"evaluations": 12}),
        num_rounds=1,
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    """Live processes that were started from a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or ()) + " "
        named = f"{folder}/" in words or f"{folder} " in words
        if named and process.pid != os.getpid():
            found.append(process)
    return found


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """End processes, of which some may have ended by themselves."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def project_with_free_ports(folder: Path) -> Path:
    """Write poc/project.yml with ports that nobody uses: another test's may not be free yet."""
    text = (ROOT / "poc" / "project.yml").read_text()
    with socket.socket() as one, socket.socket() as other:
        for bound, port in ((one, "8102"), (other, "8103")):
            bound.bind(("localhost", 0))
            text = text.replace(port, str(bound.getsockname()[1]))
    project = folder / "project.yml"
    project.write_text(text)
    return project


@dataclass
class Poc:
    """The federation of ``poc/start.sh`` in a folder of its own."""

    folder: Path

    def script(self, name: str, *arguments: str | Path, **more: str) -> str:
        """Run one of the scripts in ``poc/``."""
        settings = {"POC": str(self.folder), "BIN": str(BIN), **more}
        return run([ROOT / "poc" / name, *arguments], 400, **settings)

    @property
    def kits(self) -> Path:
        """Startup kits of all parties."""
        return self.folder / "workspace" / "gradward" / "prod_00"

    @property
    def results(self) -> list[Path]:
        """Downloaded results, the latest last."""
        return sorted((self.folder / "results").iterdir(), key=lambda path: path.stat().st_mtime)


@dataclass
class Provisioned:
    """A federation as ``nvflare provision`` leaves it, its parties started by their own scripts."""

    folder: Path

    def provision(self) -> None:
        """Make the kits."""
        project = project_with_free_ports(self.folder)
        run(
            ["nvflare", "provision", "-p", project, "-w", self.folder / "ws"], HOME=str(self.folder)
        )

    @property
    def kits(self) -> Path:
        """Startup kits of all parties."""
        return self.folder / "ws" / "gradward" / "prod_00"

    def configure(self, policies: Mapping[str, str]) -> None:
        """Do what docs/deployment.md tells each party to do, and take the BYOC right away."""
        shared = ROOT / "poc"
        for party in ("server", *SITES):
            command: list[str | Path] = [BIN / "gradward", "configure", self.kits / party]
            command += ["--settings", shared / "sites" / f"{party}.json"]
            if party in policies:
                command += ["--policy", shared / "site-policies" / policies[party]]
            run(command)
            local = self.kits / party / "local"
            rights = json.loads((local / "authorization.json.default").read_text())
            rights["permissions"]["lead"]["byoc"] = "none"
            (local / "authorization.json").write_text(json.dumps(rights))

    def start(self) -> None:
        """Start the server and the sites."""
        for party in ("server", *SITES):
            log = (self.folder / f"{party}.log").open("ab")
            subprocess.Popen(
                [str(self.kits / party / "startup" / "start.sh")],
                env=environment(HOME=str(self.folder)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.await_sites()

    def await_sites(self) -> None:
        """Wait until all sites are registered: a job starts with whom it finds."""
        deadline, seen = time.monotonic() + 120, 0
        while seen < len(SITES):
            assert time.monotonic() < deadline, f"{seen} of {len(SITES)} sites came"
            time.sleep(1)
            try:
                session = new_secure_session(LEAD, str(self.kits / LEAD), timeout=20)
            except NoConnection:
                continue
            try:
                seen = len(session.get_system_info().client_info)
            finally:
                session.close()

    def preflight(self, party: str) -> str:
        """Let NVFlare check a kit: the server's before it runs, a site's once it does."""
        command: list[str | Path] = ["nvflare", "preflight-check", "-p", self.kits / party]
        return run(command, HOME=str(self.folder))

    def submit(self, job: Path, user: str = LEAD) -> Submitted:
        """Submit and follow a job."""
        return submit_job(job, self.kits / user, self.folder / "results", timeout=300)

    def stop(self) -> None:
        """Kill what was started; how a federation is shut down is NVFlare's own matter."""
        deadline = time.monotonic() + 30
        while (found := processes_of(self.kits)) and time.monotonic() < deadline:
            kill_all(found)
            time.sleep(0.5)

    def kill(self, party: str) -> None:
        """End a party's processes as a power failure does; its watchdog starts it again."""
        found = processes_of(self.kits / party)
        kill_all([one for one in found if "nvflare" in " ".join(one.info["cmdline"])])


def scores_of(records: Sequence[LeakageRecord]) -> dict[tuple[Any, ...], dict[str, float | None]]:
    """What was scored, by the record's key."""
    return {record.key: record.scores() for record in records}
