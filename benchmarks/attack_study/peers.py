"""Runs peers under an interpreter of theirs: case and result are files in a temporary folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from .contenders import Contender, Outcome
from .instances import Instance

# Of a peer's run, over its CPU seconds: calibration, imports, a second try, a busy machine.
PATIENCE = 8
START_UP = 120
_PACKAGE = Path(__file__).parent


class Peers:
    """The peers that an interpreter has.

    Args:
        python: of an environment with ``benchmarks/requirements.txt``.
        leakpro: checkout of LeakPro, which is not on PyPI, or None.
    """

    def __init__(self, python: str = sys.executable, leakpro: Path | None = None) -> None:
        self._python = python
        self._leakpro = leakpro
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        for tool in ("breaching", "leakpro"):
            answer = self._call(tool, ["--version"], START_UP)
            if answer.returncode:
                self.missing[tool] = _last_line(answer.stderr)
            else:
                self.versions[tool] = _last_line(answer.stdout)

    def run(self, contender: Contender, instance: Instance, cpu_seconds: float) -> Outcome:
        """Run a peer's attack for at least ``cpu_seconds``, as near as its iterations allow."""
        with tempfile.TemporaryDirectory(prefix="gradward-peer-") as folder:
            request, reply = Path(folder) / "request.pt", Path(folder) / "reply.pt"
            torch.save(request_of(contender, instance, cpu_seconds), request)
            limit = PATIENCE * cpu_seconds + START_UP
            try:
                answer = self._call(contender.tool, [str(request), str(reply)], limit)
            except subprocess.TimeoutExpired:
                return Outcome("failed", f"took longer than {limit:.0f} s")
            if not reply.exists():
                return Outcome("failed", _last_line(answer.stderr))
            found: dict[str, Any] = torch.load(reply, weights_only=True)
            return Outcome(**{item.name: found[item.name] for item in fields(Outcome)})

    def _call(
        self, tool: str, arguments: list[str], limit: float
    ) -> subprocess.CompletedProcess[str]:
        places = [str(_PACKAGE.parent), *([str(self._leakpro)] if self._leakpro else [])]
        command = [self._python, "-m", f"{_PACKAGE.name}.peer_{tool}", *arguments]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"},
        )


def request_of(contender: Contender, instance: Instance, cpu_seconds: float) -> dict[str, Any]:
    """Return all that a peer is given, in tensors and plain values."""
    case, update = instance.case, instance.update
    observation = update.observation
    global_state = observation.model.state_dict()
    steps = case.settings.number_of_steps(case.n_images)
    return {
        "attack": contender.attack,
        "options": contender.options,
        "model": portable(observation.model),
        "global_state": global_state,
        "parameter_update": dict(observation.parameter_update),
        # Exact batch statistics, as GradWard reads them from the buffers.
        "batch_statistics": {
            layer.name: (layer.mean, layer.var) for layer in observation.batch_statistics
        },
        "shape": list(instance.truth.shape),
        "labels": update.labels if case.labels == "given" else None,
        "lr": case.settings.lr,
        "batch_size": case.settings.batch_size,
        "steps": steps,
        "start": instance.start(),
        "seed": instance.seed,
        "cpu_seconds": cpu_seconds,
    }


def portable(model: nn.Module) -> fx.GraphModule:
    """Return the network as a graph of torch's own layers, which loads without its classes."""
    graph = fx.symbolic_trace(model)
    for node in graph.graph.nodes:
        # Annotations name types that only the class's own module knows.
        node.type = None
    graph.recompile()
    return graph


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
