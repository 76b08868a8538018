"""A process that attacks spooled updates, one request after the other, and dies with its parent.

One JSON object a line comes in, one goes out. It is a process of its own so that an attack never
slows the federation's threads and can be killed.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradward.attacks.beside_control import run_beside_control
from gradward.attacks.budget import Budget
from gradward.attacks.label_rehearsal import RehearsalBook
from gradward.attacks.observation import AttackRefused, Observation, ObservationError
from gradward.attacks.portfolio import REASON_LENGTH, AttackResult, images_in_update
from gradward.attacks.spec import AttackSpec
from gradward.attacks.spool import load_state, save_state
from gradward.data.images import ImageSet
from gradward.models import build_model
from gradward.training import TrainingSettings


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Attack one spooled update and its control.

    Args:
        request: ``id``; ``entry``, a folder with ``update.npz``; ``global``, ``prior``
            (``.npy``, (C, H, W)), and, ``.npz`` of ``images`` and ``labels``, ``control`` and
            optionally ``public`` (for learned priors, and to infer labels by), files;
            ``model``, arguments of :func:`gradward.models.build_model`, its options nested or
            not; ``settings``, ``attacks``, ``budget``, fields of the classes of these names;
            ``n_images`` or null; ``steps``, local ones as the client states them, or null;
            ``seed``; ``rehearsal_seed``, the same for updates that may
            share rehearsals of labels; ``device``; ``threads``.

    Returns:
        ``id``, ``status`` ("ok", "rejected": this is no update of the model, or of nobody knows how
        many images, "failed"), ``reason``, and ``results``, one for each attack on the update and
        on the control. The images are in ``result.npz`` of the entry, as ``<attack>/real`` and
        ``<attack>/control``.
    """
    reply: dict[str, Any] = {"id": request.get("id"), "status": "ok", "reason": "", "results": []}
    try:
        reply["results"] = _audit(request)
    except (ObservationError, AttackRefused) as error:
        reply.update(status="rejected", reason=str(error)[:REASON_LENGTH])
    except Exception as error:
        reply.update(
            status="failed", reason=f"{type(error).__name__}: {str(error)[:REASON_LENGTH]}"
        )
    return reply


def _audit(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    torch.set_num_threads(int(request.get("threads", 1)))
    entry = Path(request["entry"])
    arguments = dict(request["model"])
    model = build_model(**{**arguments.pop("options", {}), **arguments})
    settings = TrainingSettings.from_dict(request["settings"])
    attacks = AttackSpec.check_all(request["attacks"])
    global_state, update = load_state(Path(request["global"])), load_state(entry / "update.npz")
    observation = Observation.from_update(model, global_state, update)
    stated = request.get("steps")
    n_images = images_in_update(observation, settings, request.get("n_images"), stated)
    if observation.steps is None and settings.steps is None:
        # From here on they are part of what the attacker is told of the training.
        settings = replace(settings, steps=stated)
    control_set = _image_set(request["control"])
    real, control = run_beside_control(
        observation,
        update,
        control_images=control_set.images,
        control_labels=control_set.labels,
        prior=torch.from_numpy(np.load(request["prior"], allow_pickle=False)),
        n_images=n_images,
        settings=settings,
        attacks=attacks,
        budget=Budget(**request["budget"]),
        seed=int(request["seed"]),
        device=request.get("device", "cpu"),
        public=_image_set(request["public"]) if "public" in request else None,
        rehearsals=_rehearsals(int(request["rehearsal_seed"])),
    )
    images = {f"{r.attack}/real": r.images for r in real if r.images is not None}
    images |= {f"{r.attack}/control": r.images for r in control if r.images is not None}
    save_state(entry / "result.npz", images)
    return [_record(r, False, n_images) for r in real] + [
        _record(r, True, n_images) for r in control
    ]


@lru_cache(maxsize=1)
def _rehearsals(seed: int) -> RehearsalBook:
    """Keep what was rehearsed for a round until an update of another comes."""
    return RehearsalBook(seed)


def _image_set(file: str) -> ImageSet:
    arrays = load_state(Path(file))
    return ImageSet(arrays["images"], arrays["labels"])


def _record(result: AttackResult, control: bool, n_images: int) -> dict[str, Any]:
    return {
        "attack": result.attack,
        "control": control,
        "status": result.status,
        "reason": result.reason,
        "loss": result.loss,
        "evals": result.evaluations,
        "seconds": round(result.seconds, 3),
        "n_images": n_images,
        "labels": None if result.labels is None else result.labels.tolist(),
        "knowledge": result.knowledge,
    }


def _read_requests(lines: queue.Queue[bytes], spool: Path | None) -> None:
    """Hand over what comes in; once nothing more can come, the parent is gone: end at once."""
    for line in sys.stdin.buffer:
        if line.strip():
            lines.put(line)
    while spool is not None and spool.exists():
        # The main thread may be writing into it: try until it is gone.
        shutil.rmtree(spool, ignore_errors=True)
    os._exit(0)


def main() -> None:
    """Serve requests until stdin closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spool", type=Path, help="folder to remove when the parent is gone")
    spool = parser.parse_args().spool
    # Whatever a library prints goes to stderr; the replies have the real stdout to themselves.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    torch.use_deterministic_algorithms(True, warn_only=True)
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_requests, args=(lines, spool), daemon=True).start()
    while True:
        line = lines.get()
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            failure = {"id": None, "status": "failed", "reason": f"unreadable request: {error}"}
            replies.write(json.dumps({**failure, "results": []}) + "\n")
            continue
        replies.write(json.dumps(answer(request)) + "\n")


if __name__ == "__main__":
    main()
