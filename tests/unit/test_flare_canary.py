"""Canaries at a site: which images they are, and that they are no patient's."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import MetaKey, from_shareable
from nvflare.apis.fl_constant import ReturnCode

from gradward.data import ImageSet, PublicSet
from gradward.flare.canary import (
    CANARY_IMAGES_META,
    CANARY_TASK,
    PinnedImages,
    canary_positions,
    pinned_canaries,
)
from gradward.models.literature import BatchNormCNN
from gradward.training import Batch, LocalRun, TooFewImages, TrainingSettings, train_locally

from .canary_desk import Federation, arrays_of, federation, public_set, remember_batches
from .flare_desk import experiment

PRIVATE_DP = {"epsilon": 8.0, "delta": 0.01, "rounds": 1}


@pytest.fixture
def public() -> PublicSet:
    return public_set()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    return remember_batches(monkeypatch)


# Choosing -----------------------------------------------------------------------------------------


def test_server_and_site_choose_alike_and_each_site_its_own(public: PublicSet) -> None:
    part = public.part("canary")
    first = pinned_canaries(public, 7, "site-1")
    assert torch.equal(first.images, pinned_canaries(public, 7, "site-1").images)
    assert len(first) == len(part) == 9, "the whole part, in an order"
    for image, label in zip(first.images, first.labels, strict=True):
        matches = [(image == other).all() for other in part.images]
        assert sum(matches) == 1 and part.labels[matches.index(True)] == label
    for seed, site in ((8, "site-1"), (7, "site-2")):
        assert not torch.equal(first.images, pinned_canaries(public, seed, site).images)


class Watched:
    """A source that remembers which of its images were asked for, batch by batch."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        self.asked.append(list(indices))
        index = torch.tensor(list(indices), dtype=torch.int64)
        return Batch(self.images.images[index], self.images.labels[index])


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 8},
        {"batch_size": 8, "epochs": 3},
        {"batch_size": 4, "steps": 3},
        {"batch_size": 8, "min_batch_size": 6},
        {"batch_size": 8, "dp_sgd": {"noise_multiplier": 1.0, "delta": 0.01}},
    ],
)
@pytest.mark.parametrize("n_images", [1, 5, 9, 21])
def test_the_number_told_names_the_canaries_behind_an_update(
    public: PublicSet, values: dict[str, Any], n_images: int
) -> None:
    """Whoever draws the batches, and by whatever seed."""
    settings = TrainingSettings.from_dict(values)
    watched = Watched(pinned_canaries(public, 7, "site-1"))

    def train() -> LocalRun:
        return train_locally(
            BatchNormCNN(3, 2, (32, 32), width=4, norm="group"),
            PinnedImages(watched, n_images),
            settings,
            torch.Generator().manual_seed(n_images),
            secret=torch.Generator().manual_seed(3),
        )

    if n_images < settings.min_batch_size:
        with pytest.raises(TooFewImages):
            train()
        return
    run = train()
    told = len(run.images_seen)
    used = [index for batch in watched.asked for index in batch]
    assert set(used) == set(canary_positions(told, len(watched)))
    assert [len(batch) for batch in watched.asked] == [len(batch) for batch in run.batches]
    if settings.dp_sgd is None:
        assert len(run.batches) == settings.number_of_steps(n_images)
        assert told == (min(n_images, 12) if settings.steps else n_images)
    if settings.dp_sgd is None and settings.epochs == 1:
        small = [batch for batch in watched.asked if len(batch) <= len(watched)]
        assert all(len(set(batch)) == len(batch) for batch in small), "no canary twice in a batch"


@pytest.mark.parametrize(
    ("site", "training"),
    [
        ("site-1", {"batch_size": 1}),
        ("site-2", {"batch_size": 8}),
        ("site-3", {"batch_size": 8, "epochs": 2}),
        ("site-4", {"batch_size": 4, "steps": 3}),
    ],
)
def test_a_canary_takes_the_trainings_steps_in_its_batches(
    tmp_path: Path, public: PublicSet, site: str, training: dict[str, Any]
) -> None:
    """Also where the 9 canaries do not suffice for its images."""
    desk = Federation(tmp_path, experiment(training=training | {"lr": 0.02}), site)
    live, canary = (
        from_shareable(desk.ask(task, 0, public.checksum)[0]) for task in ("train", CANARY_TASK)
    )
    steps = MetaKey.NUM_STEPS_CURRENT_ROUND
    assert canary.get_meta_prop(steps) == live.get_meta_prop(steps)
    records = [
        json.loads((tmp_path / "gradward" / "jobs" / "job-1" / folder / "0.json").read_text())
        for folder in ("rounds", "canary/rounds")
    ]
    assert len(records[0]["images"]) == len(records[1]["images"])
    assert canary.get_meta_prop(CANARY_IMAGES_META) == len(records[1]["images"])
    assert {name: v.shape for name, v in canary.data.items()} == {
        name: v.shape for name, v in live.data.items()
    }
    assert any((canary.data[name] != live.data[name]).any() for name in live.data)


# Nothing of a patient -----------------------------------------------------------------------------


def test_only_public_images_reach_the_model_and_nothing_is_streamed(
    tmp_path: Path,
    public: PublicSet,
    seen: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streamed: list[Any] = []
    for module in ("trainer", "perturber"):
        monkeypatch.setattr(
            f"gradward.flare.{module}.stream_scalars", lambda *rest: streamed.append(rest)
        )
    desk = federation(tmp_path)
    arrays_of(desk.ask(CANARY_TASK, 0, public.checksum)[0])
    canaries = {image.numpy().tobytes() for image in public.part("canary").images}
    used = {image.numpy().tobytes() for batch in seen for image in batch}
    assert used == canaries, "16 images at site-4, 9 canaries: all of them"
    assert streamed == []
    job_folder = tmp_path / "gradward" / "jobs" / "job-1"
    assert {path.name for path in job_folder.iterdir()} == {"canary"}
    assert {path.name for path in (job_folder / "canary").iterdir()} == {"rounds"}


def test_dp_sgd_pays_nothing_for_canaries(tmp_path: Path, public: PublicSet) -> None:
    """The job's epsilon suffices for one round, and is left to the training."""
    values = {"batch_size": 8, "lr": 0.02, "dp_sgd": PRIVATE_DP}
    desk = federation(tmp_path, training=values, model_options={"width": 4, "norm": "group"})
    for number in range(3):
        arrays_of(desk.ask(CANARY_TASK, number, public.checksum)[0])
    assert not (tmp_path / "gradward" / "jobs" / "job-1" / "dp_sgd.json").exists()
    arrays_of(desk.ask("train", 0, public.checksum)[0])


@pytest.mark.parametrize(
    ("declared", "told"), [(None, "sha256:1"), ("sha256:1", None), ("sha256:1", "sha256:1")]
)
def test_other_public_images_are_no_canaries(
    tmp_path: Path,
    public: PublicSet,
    declared: str | None,
    told: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    desk = federation(tmp_path, public_checksum=declared)
    with caplog.at_level(logging.ERROR):
        reply, _ = desk.ask(CANARY_TASK, 0, told or public.checksum)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "differ between server, site and job" in caplog.text


def test_a_site_that_must_perturb_computes_no_raw_canary(
    tmp_path: Path, public: PublicSet, seen: list[torch.Tensor]
) -> None:
    desk = federation(tmp_path)
    desk.settings(perturbation={"required": True})
    reply, _ = desk.ask(CANARY_TASK, 0, public.checksum)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION and not seen
