"""The worker's protocol, with the process itself."""

from __future__ import annotations

import json
import math
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradward.attacks import worker as attack_worker
from gradward.attacks.label_rehearsal import LabelRehearsal, Rehearsed
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
    folder.mkdir()
    put_update(folder, "entry", patches()[200:201], torch.tensor([1]))
    labels = torch.arange(12) % 2
    save_state(folder / "control.npz", {"images": patches()[:8], "labels": labels[:8]})
    save_state(folder / "public.npz", {"images": patches()[8:20], "labels": labels})
    np.save(folder / "prior.npy", public_mean().numpy())
    return folder


def put_update(
    folder: Path, entry: str, images: Tensor, labels: Tensor, steps: int = 1, **network: Any
) -> None:
    """Train on ``images`` in batches of the same size; put the update into an entry of its own."""
    arguments = {**MODEL, **network}
    model = build_model(**{**arguments.pop("options"), **arguments})
    settings = TrainingSettings.from_dict({**SETTINGS, "batch_size": len(images) // steps})
    before, update, _ = train(model, images, labels, settings)
    (folder / entry).mkdir()
    save_state(folder / entry / "update.npz", update)
    save_state(folder / "global.npz", before)


def request(spool: Path, **changes: object) -> bytes:
    message = {
        "id": "site-1/3",
        "entry": str(spool / "entry"),
        "global": str(spool / "global.npz"),
        "prior": str(spool / "prior.npy"),
        "public": str(spool / "public.npz"),
        "control": str(spool / "control.npz"),
        "model": MODEL,
        "settings": SETTINGS,
        "n_images": None,
        "attacks": [{"name": "matching"}, {"name": "batchnorm", "max_images": 0}],
        "budget": {"evaluations": 20},
        "seed": 3,
        "rehearsal_seed": 4,
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


@pytest.fixture
def rehearsals(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Rehearsed]]:
    """What this process rehearsed, as a worker that has just started."""
    made: list[Rehearsed] = []
    rehearse = LabelRehearsal._rehearse_all

    def spy(*arguments: Any) -> Rehearsed:
        made.append(rehearse(*arguments))
        return made[-1]

    monkeypatch.setattr(LabelRehearsal, "_rehearse_all", spy)
    monkeypatch.setattr("gradward.attacks.label_rehearsal.REHEARSALS", 12)
    attack_worker._rehearsals.cache_clear()
    yield made
    attack_worker._rehearsals.cache_clear()


def of_eight(spool: Path, entry: str, **changes: object) -> list[dict[str, Any]]:
    """The results, of the update and of its control, of matching eight images."""
    asked = {
        "entry": str(spool / entry),
        "settings": {**SETTINGS, "batch_size": 8},
        "attacks": [{"name": "matching"}],
        "budget": {"evaluations": 3},
    }
    reply = attack_worker.answer(json.loads(request(spool, **{**asked, **changes})))
    assert reply["status"] == "ok", reply["reason"]
    return list(reply["results"])


def test_labelled_public_images_tell_labels_and_are_rehearsed_once_a_round(
    spool: Path, rehearsals: list[Rehearsed]
) -> None:
    for site, first in (("a", 200), ("b", 216)):
        put_update(spool, site, patches()[first : first + 8], torch.arange(8) // 5)
    real, control = of_eight(spool, "a")
    assert len(rehearsals) == 1, "the control's are the same"
    for result in (real, control):
        told = (result["knowledge"]["labels"], result["knowledge"]["public_images"])
        assert told == ("inferred", "given"), result["control"]

    there = of_eight(spool, "b")
    assert len(rehearsals) == 1, "another site's are the same"
    of_eight(spool, "a", rehearsal_seed=5)
    of_eight(spool, "a", settings={**SETTINGS, "batch_size": 8, "lr": 0.01})
    assert len(rehearsals) == 3, "of another round, or after another training, they are not"

    attack_worker._rehearsals.cache_clear()
    alone = of_eight(spool, "b")
    assert len(rehearsals) == 4
    for result in (*there, *alone):
        del result["seconds"]
    assert there == alone, "whoever rehearsed first, the result is the same"


@pytest.mark.parametrize("public", ["unlabelled", "one class", "none"])
def test_without_labels_of_each_class_the_prior_tells(
    spool: Path, rehearsals: list[Rehearsed], public: str
) -> None:
    put_update(spool, "a", patches()[200:208], torch.arange(8) // 5)
    labels = torch.full((12,), -1 if public == "unlabelled" else 0)
    save_state(spool / "public.npz", {"images": patches()[8:20], "labels": labels})
    asked = json.loads(request(spool, entry=str(spool / "a"), budget={"evaluations": 3}))
    asked |= {"settings": {**SETTINGS, "batch_size": 8}, "attacks": [{"name": "matching"}]}
    if public == "none":
        del asked["public"]
    (real, _) = attack_worker.answer(asked)["results"]
    assert real["knowledge"]["public_images"] == "lacked" and not rehearsals
    assert len(real["labels"]) == 8


def test_an_update_beyond_the_attacks_limits_is_not_rehearsed(
    spool: Path, rehearsals: list[Rehearsed]
) -> None:
    put_update(spool, "a", patches()[200:208], torch.arange(8) // 5)
    few = [{"name": "matching", "max_images": 4}, {"name": "features", "max_steps": 0}]
    assert {result["status"] for result in of_eight(spool, "a", attacks=few)} == {"skipped"}
    assert not rehearsals


WITHOUT_BATCHNORM = {"name": "lenet", "options": {}}


def of_lenet(spool: Path, **changes: object) -> dict[str, Any]:
    """The reply about an update in three steps of two images, of a network without counters."""
    put_update(spool, "a", patches()[200:206], torch.arange(6) % 2, 3, **WITHOUT_BATCHNORM)
    asked = {
        "entry": str(spool / "a"),
        "model": {**MODEL, **WITHOUT_BATCHNORM},
        "settings": {"batch_size": 2, "lr": 0.02},
        "attacks": [{"name": "matching"}, {"name": "features"}],
        "budget": {"evaluations": 3},
    }
    return attack_worker.answer(json.loads(request(spool, **{**asked, **changes})))


def test_a_client_states_the_steps_that_no_counter_tells(spool: Path) -> None:
    reply = of_lenet(spool, steps=3)
    assert reply["status"] == "ok", reply["reason"]
    told = [(r["attack"], r["control"], r["n_images"]) for r in reply["results"]]
    assert told == [(a, c, 6) for c in (False, True) for a in ("matching", "features")]
    for result in reply["results"]:
        assert result["status"] == "ok" and len(result["labels"]) == 6
        assert result["knowledge"]["local_steps"] == "given"


@pytest.mark.parametrize(
    ("settings", "n_images"),
    [({"epochs": 3}, 2), ({"steps": 2}, 4)],
    ids=["in three epochs", "the job's own number"],
)
def test_what_the_job_says_of_steps_and_epochs_counts(
    spool: Path, settings: dict[str, Any], n_images: int
) -> None:
    reply = of_lenet(spool, steps=3, settings={"batch_size": 2, "lr": 0.02, **settings})
    assert {r["n_images"] for r in reply["results"]} == {n_images}


@pytest.mark.parametrize(
    ("steps", "reason"),
    [(None, "neither the number of images"), (0, "is none from 1"), (10**9, "is none from 1")],
)
def test_a_number_of_steps_that_cannot_be_is_refused(
    spool: Path, steps: int | None, reason: str
) -> None:
    reply = of_lenet(spool, steps=steps)
    assert reply["status"] == "rejected" and not reply["results"]
    assert reply["reason"].startswith(("neither", "the update's")) and reason in reply["reason"]


def test_a_network_that_counts_is_believed_before_its_client(spool: Path) -> None:
    for steps in (0, 7):
        asked = json.loads(request(spool, steps=steps, budget={"evaluations": 2}))
        real = attack_worker.answer(asked)["results"][0]
        assert (real["n_images"], real["knowledge"]["local_steps"]) == (1, "inferred")


def test_no_control_is_trained_for_attacks_that_refuse(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gradward.attacks.beside_control.control_update", lambda *_: pytest.fail("it was")
    )
    results = of_lenet(spool, steps=100_000)["results"]
    assert {(r["control"], r["status"]) for r in results} == {(False, "skipped")}


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
