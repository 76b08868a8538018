"""An auditor whose attack sleeps, to measure what the audit itself costs a federation.

As a program it is the worker: it answers every request after the seconds that its budget names.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from gradward.flare.auditor import InversionAuditor


class SleepingAuditor(InversionAuditor):
    """The real auditor with a worker that waits instead of attacking."""

    worker_module = "sleeping_attack"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Sleep, then give back noise, one image for each of a batch."""
    time.sleep(request["budget"]["seconds"])
    scored = request["budget"]["evaluations"] > 1
    shape = (request["settings"]["batch_size"], *np.load(request["prior"]).shape)
    noise = np.random.default_rng(request["seed"])
    results: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for attack in request["attacks"]:
        for control in (False, True):
            role = "control" if control else "real"
            arrays[f"{attack['name']}/{role}"] = noise.random(shape, dtype=np.float32)
            results.append(
                {
                    "attack": attack["name"],
                    "control": control,
                    "status": "ok" if scored else "skipped",
                    "reason": "" if scored else "this variant is not scored",
                    "loss": 0.0,
                    "evals": 0,
                    "seconds": request["budget"]["seconds"],
                    "n_images": shape[0],
                    "labels": [],
                    "knowledge": {},
                }
            )
    np.savez(Path(request["entry"]) / "result.npz", allow_pickle=False, **arrays)
    return {"id": request["id"], "status": "ok", "reason": "", "results": results}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
