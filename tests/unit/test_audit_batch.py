"""Several updates at the desk: the same answers however many workers share them, and no more."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradward.attacks import AttackSpec
from gradward.audit import AuditError, AuditResult, AuditSummary, UpdateAudit, audit_updates
from gradward.audit.workers import devices_of_workers
from gradward.models.literature import BatchNormCNN
from gradward.report.pictures import save_picture
from gradward.state_files import StateFileError, state_files

from .attack_fixtures import patches, train
from .audit_desk import FEW, ONE, PUBLIC, audit, network

SITES = ("a", "b", "c")


@dataclass(frozen=True)
class Desk:
    """Updates on disk, of which ``spoiled`` cannot be used, with a truth each."""

    folder: Path
    global_file: Path
    updates: list[Path]
    truths: dict[str, Tensor | Path | str]

    def call(self, out: str, **changes: Any) -> AuditSummary:
        arguments: dict[str, Any] = {
            "model": network(),
            "global_file": self.global_file,
            "updates": self.updates,
            "folder": self.folder / out,
            "image_shape": (3, 32, 32),
            "settings": ONE,
            "public": PUBLIC,
            "truths": self.truths,
            "budget": FEW,
            "attacks": [AttackSpec("features"), AttackSpec("matching")],
        }
        return audit_updates(**{**arguments, **changes})


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    (folder / "updates").mkdir()
    truths: dict[str, Tensor | Path | str] = {}
    for number, name in enumerate(SITES):
        image = patches()[200 + number : 201 + number]
        before, update, _ = train(network(), image, torch.tensor([1]), ONE)
        torch.save(update, folder / "updates" / f"{name}.pt")
        truths[name] = image
    # One of them as a folder of pictures.
    (folder / "truth").mkdir()
    save_picture(folder / "truth" / "picture.png", patches()[200])
    truths["a"] = folder / "truth"
    truths["spoiled"] = patches()[200:201]
    torch.save(before, folder / "global.pt")
    torch.save(update | {"fc.bias": torch.full((2,), torch.nan)}, folder / "updates/spoiled.pt")
    return Desk(folder, folder / "global.pt", state_files(folder / "updates"), truths)


@pytest.fixture(scope="module")
def alone(desk: Desk) -> AuditSummary:
    """By one worker, whose third update is on disk only when it has done with the first."""
    third, aside = desk.updates[2], desk.folder / "aside.pt"
    third.rename(aside)

    def put_back(update: UpdateAudit, finished: int, total: int) -> None:
        if finished == 1:
            aside.rename(third)

    return desk.call("alone", progress=put_back)


def without_clock(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    for item in content["attacks"]:
        for attempt in (item["real"], item["control"]):
            del attempt["seconds"]
    return content


def test_each_update_is_audited_as_if_it_were_the_only_one(desk: Desk, alone: AuditSummary) -> None:
    assert [update.name for update in alone.updates] == ["a", "b", "c", "spoiled"]
    before = torch.load(desk.global_file)
    for update, file in zip(alone.updates[:3], desk.updates, strict=False):
        image = patches()[200:203][SITES.index(update.name)][None]
        by_itself = audit((before, torch.load(file)), "features", "matching", truth=image)
        assert update.result is not None
        for found, expected in zip(update.result.attacks, by_itself.attacks, strict=True):
            assert found.real.loss == pytest.approx(expected.real.loss, rel=1e-3)
            assert found.real.recovered == pytest.approx(expected.real.recovered, abs=0.02)


def test_an_update_is_read_when_its_turn_has_come(alone: AuditSummary) -> None:
    assert alone.updates[2].status == "ok", alone.updates[2].reason


def test_the_number_of_workers_does_not_matter(desk: Desk, alone: AuditSummary) -> None:
    told: list[tuple[str, int, int]] = []

    def tell(update: UpdateAudit, finished: int, total: int) -> None:
        told.append((update.name, finished, total))

    order = desk.updates[::-1]
    shared = desk.call("shared", updates=order, workers=2, progress=tell)
    assert [update.name for update in shared.updates] == ["spoiled", "c", "b", "a"]
    assert [(finished, total) for _, finished, total in told] == [(n, 4) for n in (1, 2, 3, 4)]
    assert {name for name, _, _ in told} == {"spoiled", *SITES}
    for name in SITES:
        one, two = desk.folder / "alone" / name, desk.folder / "shared" / name
        pictures = sorted(file.relative_to(one) for file in one.rglob("*.png"))
        assert len(pictures) == 7
        assert all((one / p).read_bytes() == (two / p).read_bytes() for p in pictures)
        assert without_clock(one / "audit.json") == without_clock(two / "audit.json")


def test_what_cannot_be_used_does_not_stop_the_others(desk: Desk, alone: AuditSummary) -> None:
    assert [update.status for update in alone.updates] == ["ok", "ok", "ok", "rejected"]
    assert not alone.complete
    spoiled = alone.updates[-1]
    assert spoiled.result is None and "'fc.bias' has values that are not finite" in spoiled.reason
    folder = desk.folder / "alone"
    assert sorted(path.name for path in folder.iterdir()) == [*SITES, "summary.json"]
    assert folder.stat().st_mode & 0o077 == 0

    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(alone.to_json())
    assert (summary["finished"], summary["total"]) == (4, 4)
    for item in summary["updates"][:3]:
        written = AuditResult.from_json((folder / item["update"] / "audit.json").read_text())
        assert written.best is not None and item["best"]["recovered"] == written.best.recovered
        assert item["verdict"] == written.verdict and item["device"] == "cpu"


class Fatal(BatchNormCNN):
    """A network that takes its process with it, once: as what uses up the memory does."""

    def __init__(self, marker: Path) -> None:
        super().__init__(in_channels=3, num_classes=2, image_size=[32, 32], width=8)
        self.marker = marker

    def forward(self, images: Tensor) -> Tensor:
        if self.marker.exists():
            self.marker.unlink()
            os._exit(9)
        return super().forward(images)


def test_a_worker_that_dies_takes_one_update_with_it(desk: Desk) -> None:
    marker = desk.folder / "marker"
    marker.touch()
    summary = desk.call("fatal", model=Fatal(marker), updates=desk.updates[:2], truths=None)
    assert [update.status for update in summary.updates] == ["failed", "ok"]
    assert "its worker process died" in summary.updates[0].reason
    assert sorted(p.name for p in (desk.folder / "fatal").iterdir()) == ["b", "summary.json"]


class Unloadable(BatchNormCNN):
    """As a class that was defined in a notebook: it is sent, and not found by the worker."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AttributeError("Can't get attribute 'Net' on <module '__main__' (built-in)>")


def test_a_network_that_workers_cannot_load_is_refused(desk: Desk) -> None:
    unsendable, unloadable = network(), Unloadable(in_channels=3, num_classes=2, image_size=[8, 8])
    unsendable.hook = lambda images: images  # type: ignore[assignment]
    with pytest.raises(AuditError, match="cannot be sent to worker processes"):
        desk.call("unsendable", model=unsendable)
    with pytest.raises(AuditError, match=r"'Net' .*; define its class in a module that can be"):
        desk.call("unloadable", model=unloadable)


def test_a_script_that_cannot_be_imported_is_told_and_does_not_hang(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers import the calling script; one without a guard dies there, before it has listened.
    script = desk.folder / "script.py"
    script.write_text("raise SystemExit(1)")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    with pytest.raises(AuditError, match='must do this below if __name__ == "__main__"'):
        desk.call("script", model=network(width=64))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"updates": []}, AuditError, "at least one file"),
        ({"updates": ["round-1/a.pt", "round-2/a.npz"]}, AuditError, "a name of its own"),
        ({"truths": {"a": PUBLIC.images}}, AuditError, "there is no truth of the update 'b'"),
        ({"attacks": [AttackSpec("features")] * 2}, AuditError, "each may be named once"),
        ({"devices": []}, AuditError, "devices must be a list of at least one"),
        ({"devices": "cpu"}, AuditError, "devices must be a list of at least one"),
        ({"devices": ["cpu", "cuda:63"]}, AuditError, "there is no device 'cuda:63' here"),
        ({"workers": 0}, AuditError, "workers must be an integer"),
        ({"workers": 1, "devices": ["cpu", "cpu"]}, AuditError, "number of devices, 2, got 1"),
        ({"global_file": "nowhere.pt"}, StateFileError, "there is no such file"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    desk: Desk, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        desk.call("mistaken", **changes)
    assert not (desk.folder / "mistaken").exists()


def test_an_earlier_batch_is_not_overwritten(desk: Desk, alone: AuditSummary) -> None:
    before = (desk.folder / "alone" / "a" / "audit.json").read_bytes()
    with pytest.raises(AuditError, match=r"is not empty; .* need a new folder"):
        desk.call("alone")
    assert (desk.folder / "alone" / "a" / "audit.json").read_bytes() == before


def test_workers_share_the_devices_in_turn() -> None:
    assert devices_of_workers(None, ["cpu", "cpu:0"]) == ["cpu", "cpu:0"]
    assert devices_of_workers(3, ["cpu", "cpu:0"]) == ["cpu", "cpu:0", "cpu"]
    assert devices_of_workers(None, ["cpu"]) == ["cpu"]
