"""Canaries of a defended site: a twin of its perturber, and its filters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import MetaKey, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply

from gradward.data import PublicSet
from gradward.defenses.ledger import PrivacyLedger
from gradward.defenses.noise import SECRET_FILE
from gradward.defenses.perturbation import SitePerturber
from gradward.flare.canary import CANARY_IMAGES_META, CANARY_TASK
from gradward.flare.gate import LeakageGate
from gradward.flare.guard import PerturbationGuard
from gradward.flare.perturber import Perturbation
from gradward.flare.perturber_store import LEDGER_FILE
from gradward.flare.update_filters import UpdateNoise
from gradward.report.site_folder import GUARD

from .canary_desk import (
    QUICK,
    SECRET,
    Federation,
    arrays_of,
    federation,
    public_set,
    remember_batches,
)
from .flare_desk import accept_perturbers


@pytest.fixture
def public() -> PublicSet:
    return public_set()


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every batch that reaches a model in training, of perturbers that all are accepted."""
    accept_perturbers(monkeypatch)
    return remember_batches(monkeypatch)


# The twin of the perturber ------------------------------------------------------------------------


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """Settings and images of every fit."""
    calls: list[tuple[Any, ...]] = []
    fit = SitePerturber.fit.__func__  # type: ignore[attr-defined]

    def counted(cls: Any, settings: Any, images: Any, public: Any, **more: Any) -> SitePerturber:
        calls.append((settings, images, public))
        perturber: SitePerturber = fit(cls, settings, images, public, **more)
        return perturber

    monkeypatch.setattr(SitePerturber, "fit", classmethod(counted))
    yield calls


def test_the_twin_is_fitted_on_public_images_with_the_same_settings(
    tmp_path: Path, public: PublicSet, fits: list[tuple[Any, ...]], seen: list[torch.Tensor]
) -> None:
    desk = federation(tmp_path, perturbation=QUICK | {"fitted_on": "site"})
    arrays_of(desk.ask(CANARY_TASK, 0, public.checksum)[0])
    ((settings, images, fit_images),) = fits
    assert (settings.mode, settings.rate, settings.fitted_on) == ("uniform", 1.0, "public")
    assert torch.equal(images.images, public.part("canary").images)
    assert torch.equal(fit_images.images, public.part("fit").images)
    raw = {image.numpy().tobytes() for image in public.part("canary").images}
    assert not raw & {image.numpy().tobytes() for batch in seen for image in batch}


def test_the_twin_has_secret_and_books_of_its_own(tmp_path: Path, public: PublicSet) -> None:
    desk = federation(tmp_path, perturbation=QUICK)
    for number in range(2):
        arrays_of(desk.ask(CANARY_TASK, number, public.checksum)[0])
    private = tmp_path / "gradward"
    assert not (private / LEDGER_FILE).exists() and not (private / "perturbers").exists()
    assert (private / "canary" / SECRET_FILE).read_bytes() != SECRET
    (books,) = (private / "canary").rglob(LEDGER_FILE)
    assert PrivacyLedger(books).total().views == len(public.part("canary")), "one view each"


def test_another_jobs_twin_is_not_refused_for_the_first_ones_views(
    tmp_path: Path, public: PublicSet
) -> None:
    """Public images need no protection from a second view; patients' have it."""
    desk = federation(tmp_path, perturbation=QUICK)
    arrays_of(desk.ask(CANARY_TASK, 0, public.checksum)[0])
    desk.components["perturbation"] = Perturbation(QUICK | {"rate": 1.5})
    arrays_of(desk.ask(CANARY_TASK, 0, public.checksum)[0])


@pytest.mark.parametrize("limits", [{"max_rate": 0.5}, {"max_views": 0}])
def test_what_a_site_forbids_its_training_it_forbids_its_canaries(
    tmp_path: Path, public: PublicSet, limits: dict[str, float]
) -> None:
    desk = federation(tmp_path, perturbation=QUICK)
    desk.settings(perturbation=limits)
    for task in ("train", CANARY_TASK):
        reply, _ = desk.ask(task, 0, public.checksum)
        assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION


# Filters ------------------------------------------------------------------------------------------


def reason(desk: Federation, reply: Shareable, fl_ctx: FLContext) -> str:
    """Why the guard blocks a reply; fails if it does not."""
    answer = PerturbationGuard().process(reply, fl_ctx)
    assert answer == make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR)
    return str(desk.journal(GUARD)[-1]["reason"])


def test_the_guard_lets_a_perturbed_canary_pass_with_its_count(
    tmp_path: Path, public: PublicSet
) -> None:
    desk = federation(tmp_path, [PerturbationGuard(), PerturbationGuard()], QUICK)
    passed = from_shareable(desk.send(CANARY_TASK, 2, public.checksum))
    assert passed.meta == {
        MetaKey.NUM_STEPS_CURRENT_ROUND: 2,
        "perturbation_mode": "uniform",
        "perturbed_samples": 16,
        CANARY_IMAGES_META: 16,
    }
    assert desk.journal(GUARD)[-1]["round"] == 2


def test_the_guard_blocks_an_undefended_canary(tmp_path: Path, public: PublicSet) -> None:
    desk = federation(tmp_path)
    reply, fl_ctx = desk.ask(CANARY_TASK, 0, public.checksum)
    assert "16 raw samples" in reason(desk, reply, fl_ctx)


def test_the_guard_confuses_no_canary_with_an_update(tmp_path: Path, public: PublicSet) -> None:
    desk = federation(tmp_path, perturbation=QUICK)
    update, of_update = desk.ask("train", 0, public.checksum)
    canary, of_canary = desk.ask(CANARY_TASK, 0, public.checksum)
    assert "not signed by this site" in reason(desk, update, of_canary)
    assert "entries that are not on the list" in reason(desk, canary, of_update)
    dxo = from_shareable(canary)
    del dxo.meta[CANARY_IMAGES_META]
    assert "not signed by this site" in reason(desk, dxo.to_shareable(), of_update)


@pytest.mark.parametrize("count", [15, True, 16.0, "16", 10**9])
def test_the_guard_blocks_another_count(tmp_path: Path, public: PublicSet, count: Any) -> None:
    desk = federation(tmp_path, perturbation=QUICK)
    reply, fl_ctx = desk.ask(CANARY_TASK, 0, public.checksum)
    dxo = from_shareable(reply)
    dxo.meta[CANARY_IMAGES_META] = count
    assert "canary_images is not what" in reason(desk, dxo.to_shareable(), fl_ctx)


def test_noise_on_canaries_has_a_key_of_its_own(tmp_path: Path, public: PublicSet) -> None:
    """Else a server that had a canary equal to an update could subtract the noise of both."""
    desk = federation(tmp_path)
    raw, as_canary = desk.ask(CANARY_TASK, 0, public.checksum)
    dxo = from_shareable(copy.deepcopy(raw))
    del dxo.meta[CANARY_IMAGES_META]
    noisy = UpdateNoise(0.1).process(raw, as_canary)
    assert from_shareable(noisy).get_meta_prop(CANARY_IMAGES_META) == 16
    as_update = UpdateNoise(0.1).process(dxo.to_shareable(), desk.task("train"))
    assert arrays_of(noisy) != arrays_of(as_update)


def test_the_gate_leaves_canaries_alone(tmp_path: Path, public: PublicSet) -> None:
    desk = federation(tmp_path)
    gate = LeakageGate([{"name": "batchnorm"}], {"evaluations": 5}, {"recovered": 0.0})
    reply, fl_ctx = desk.ask(CANARY_TASK, 0, public.checksum)
    assert gate.process(reply, fl_ctx) is reply
    assert not list(tmp_path.rglob("gate.log"))
