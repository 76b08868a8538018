"""The worker's protocol, with the process itself."""

from __future__ import annotations

import json
import math
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gradward.attacks.spool import load_state, save_state
from gradward.models import build_model
from gradward.training import TrainingSettings

from .attack_fixtures import patches, public_mean, train

MODEL = {
    "name": "bn_cnn",
    "in_channels": 3,
    "num_classes": 2,
    "image_size": [32, 32],
    "options": {"width": 8},
}
SETTINGS = {"batch_size": 1, "lr": 0.02}


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    (folder / "entry").mkdir(parents=True)
    model = build_model("bn_cnn", in_channels=3, num_classes=2, image_size=[32, 32], width=8)
    before, update, _ = train(
        model, patches()[200:201], torch.tensor([1]), TrainingSettings.from_dict(SETTINGS)
    )
    save_state(folder / "entry" / "update.npz", update)
    save_state(folder / "global.npz", before)
    labels = torch.arange(8) % 2
    save_state(folder / "control.npz", {"images": patches()[:8], "labels": labels})
    np.save(folder / "prior.npy", public_mean().numpy())
    np.save(folder / "public.npy", patches()[8:20].numpy())
    return folder


def request(spool: Path, **changes: object) -> bytes:
    message = {
        "id": "site-1/3",
        "entry": str(spool / "entry"),
        "global": str(spool / "global.npz"),
        "prior": str(spool / "prior.npy"),
        "public": str(spool / "public.npy"),
        "control": str(spool / "control.npz"),
        "model": MODEL,
        "settings": SETTINGS,
        "n_images": None,
        "attacks": [{"name": "matching"}, {"name": "batchnorm", "max_images": 0}],
        "budget": {"evaluations": 20},
        "seed": 3,
        "device": "cpu",
        "threads": 1,
    }
    return (json.dumps({**message, **changes}) + "\n").encode()


@pytest.fixture
def worker(spool: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "gradward.attacks.worker", "--spool", str(spool)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    yield process
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def ask(process: subprocess.Popen[bytes], line: bytes) -> dict:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def test_requests_are_answered_in_turn(worker: subprocess.Popen[bytes], spool: Path) -> None:
    reply = ask(worker, request(spool))

    assert (reply["id"], reply["status"], reply["reason"]) == ("site-1/3", "ok", "")
    told = [(r["attack"], r["control"], r["status"]) for r in reply["results"]]
    # A control of an attack that did not run says nothing and is not computed.
    assert told == [
        ("matching", False, "ok"),
        ("batchnorm", False, "skipped"),
        ("matching", True, "ok"),
    ]
    real = reply["results"][0]
    assert (real["evals"], real["n_images"], real["labels"]) == (20, 1, [1])
    assert real["knowledge"]["labels"] == "inferred"
    images = load_state(spool / "entry" / "result.npz")
    assert set(images) == {"matching/real", "matching/control"}
    assert images["matching/real"].shape == (1, 3, 32, 32)
    assert images["matching/real"].dtype == torch.float32

    learning = [{"name": "features", "learned_prior": 0.3}]
    for result in ask(worker, request(spool, attacks=learning))["results"]:
        assert result["knowledge"]["public_images"] == "given", result["control"]

    assert ask(worker, b"no json\n")["status"] == "failed"
    failed = ask(worker, request(spool, attacks=[{"name": "magic"}]))
    assert failed["status"] == "failed" and "unknown attack" in failed["reason"]

    update = load_state(spool / "entry" / "update.npz")
    update["fc.weight"][0, 0] = math.nan
    save_state(spool / "entry" / "update.npz", update)
    rejected = ask(worker, request(spool))
    assert rejected["status"] == "rejected" and "'fc.weight'" in rejected["reason"]
    assert rejected["results"] == []


def test_it_ends_in_the_middle_of_an_attack_when_its_parent_is_gone(
    worker: subprocess.Popen[bytes], spool: Path
) -> None:
    assert ask(worker, b"warm up\n")["status"] == "failed"
    assert worker.stdin is not None
    worker.stdin.write(request(spool, budget={"evaluations": 10**6}))
    worker.stdin.close()
    assert worker.wait(timeout=10) == 0
    assert not spool.exists()


def test_states_are_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    save_state(path, {"a.b": torch.ones(2), "count": torch.tensor(3), "c/d": np.zeros(1)})
    state = load_state(path)
    assert state["a.b"].tolist() == [1, 1] and state["count"].item() == 3
    assert set(state) == {"a.b", "count", "c/d"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(TypeError):
        save_state(path, {"a": torch.ones(1, dtype=torch.bfloat16)})
    assert list(tmp_path.iterdir()) == [path]
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_state(tmp_path / "pickled.npz")
