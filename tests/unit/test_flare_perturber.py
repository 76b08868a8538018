"""The perturbation as a job configures it and a site limits it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReturnCode

from gradward.defenses.acceptance import Acceptance
from gradward.defenses.ledger import LedgerError, PrivacyLedger
from gradward.defenses.noise import SECRET_FILE, SecretError
from gradward.defenses.perturbation import SitePerturber
from gradward.flare.experiment import JobError
from gradward.flare.guard import PerturbationGuard
from gradward.flare.perturber import Perturbation
from gradward.flare.perturber_store import LEDGER_FILE
from gradward.flare.seeds import secret_generator
from gradward.flare.site import Site, open_site

from .flare_desk import ACCEPTED, Desk, accept_perturbers, experiment

# Fitted in a second: what it hides is not the matter here.
QUICK = {"mode": "uniform", "fitted_on": "public", "rate": 1.0, "autoencoder_steps": 3}


@pytest.fixture(autouse=True)
def verdict(monkeypatch: pytest.MonkeyPatch) -> list[Acceptance]:
    """What the acceptance gate finds; a test may put another verdict in its place."""
    return accept_perturbers(monkeypatch)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Modes of the perturbers that were fitted."""
    calls: list[str] = []
    fit = SitePerturber.fit.__func__  # type: ignore[attr-defined]

    def counted(cls: Any, settings: Any, *args: Any, **kwargs: Any) -> SitePerturber:
        calls.append(settings.mode)
        perturber: SitePerturber = fit(cls, settings, *args, **kwargs)
        return perturber

    monkeypatch.setattr(SitePerturber, "fit", classmethod(counted))
    return calls


def desk_with(folder: Path, site: str = "site-4", **arguments: Any) -> Desk:
    return Desk(folder, experiment(), site, {"perturbation": Perturbation(**arguments)})


def opened(desk: Desk, number: int = 0) -> tuple[Site, Any]:
    fl_ctx = desk.task("train")
    site = open_site(fl_ctx)
    images = desk.job.load_split(site, "training")
    perturbation = desk.components["perturbation"]
    assert isinstance(perturbation, Perturbation)
    return site, perturbation.open(site, desk.job, images, fl_ctx, number)


def test_a_later_job_finds_the_perturber_and_its_views(tmp_path: Path, fits: list[str]) -> None:
    first = desk_with(tmp_path, settings=QUICK)
    site, views = opened(first)
    assert fits == ["uniform"]
    later = desk_with(tmp_path, settings=QUICK)
    later.job = experiment(seed=8, model_options={"width": 6})
    _, again = opened(later)
    assert fits == ["uniform"], "nothing was fitted anew"
    assert again.version == views.version and again.source.batch(range(16)).perturbed
    assert PrivacyLedger(site.private / LEDGER_FILE).total().views == 16


@pytest.mark.parametrize(
    ("lost", "error"), [(SECRET_FILE, SecretError), (LEDGER_FILE, LedgerError)]
)
def test_without_its_books_a_site_gives_no_second_views(
    tmp_path: Path, fits: list[str], lost: str, error: type[Exception]
) -> None:
    site, _ = opened(desk_with(tmp_path, settings=QUICK))
    (site.private / lost).unlink()
    with pytest.raises(error, match="gone; restore it"):
        opened(desk_with(tmp_path, settings=QUICK | {"rate": 1.5}))
    assert fits == ["uniform"]


def test_other_settings_are_a_second_view_and_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = desk_with(tmp_path, settings=QUICK)
    guard = PerturbationGuard()
    fl_ctx = desk.task("train")
    assert guard.process(desk.answer(fl_ctx), fl_ctx).get_return_code() == ReturnCode.OK
    greedy = desk_with(tmp_path, settings=QUICK | {"rate": 1.5})
    with caplog.at_level(logging.ERROR):
        reply = greedy.answer(greedy.task("train"))
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "past this site's budget" in caplog.text


def test_strengthening_lasts(tmp_path: Path, fits: list[str]) -> None:
    desk = desk_with(tmp_path, settings=QUICK)
    site, views = opened(desk)
    perturbation = desk.components["perturbation"]
    assert isinstance(perturbation, Perturbation)
    perturbation.strengthen(site, 0.5)
    _, stronger = opened(desk, 1)
    _, in_new_process = opened(desk_with(tmp_path, settings=QUICK), 2)
    assert stronger.version == in_new_process.version != views.version


def test_nothing_to_strengthen_is_told(tmp_path: Path) -> None:
    desk = desk_with(tmp_path, settings=QUICK)
    perturbation = desk.components["perturbation"]
    assert isinstance(perturbation, Perturbation)
    with pytest.raises(JobError, match="no perturber"):
        perturbation.strengthen(open_site(desk.task("train")), 0.5)


def test_each_site_has_its_own_settings() -> None:
    perturbation = Perturbation(QUICK, {"site-1": {"rate": 3.0}, "site-2": None})
    rates = [perturbation.settings_for(site) for site in ("site-1", "site-2", "site-3")]
    assert [None if item is None else item.rate for item in rates] == [3.0, None, 1.0]
    only_one = Perturbation(per_site={"site-1": {"mode": "class", "fitted_on": "public"}})
    assert only_one.settings_for("site-1") is not None
    assert only_one.settings_for("site-2") is None


@pytest.mark.parametrize(
    ("limits", "arguments", "words"),
    [
        ({"max_rate": 0.5}, {"settings": QUICK}, "this site allows 0.5"),
        ({"required": True}, {"per_site": {"site-1": QUICK}}, "perturbed images only"),
        ({"max_views": 0}, {"settings": QUICK}, "budget"),
        ({"max_views": "two"}, {"settings": QUICK}, "max_views"),
        ({}, {"settings": {"mode": "uniform", "fitted_on": "site"}}, "at least 100"),
    ],
)
def test_a_site_that_refuses_says_why(
    tmp_path: Path,
    limits: dict[str, Any],
    arguments: dict[str, Any],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    desk = desk_with(tmp_path, **arguments)
    desk.settings(perturbation=limits)
    with caplog.at_level(logging.ERROR):
        reply = desk.answer(desk.task("train"))
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert words in caplog.text


def test_a_refused_perturber_trains_nothing(
    tmp_path: Path, verdict: list[Acceptance], caplog: pytest.LogCaptureFixture
) -> None:
    verdict[0] = replace(ACCEPTED, linkage=0.9, accepted=False)
    desk = desk_with(tmp_path, settings=QUICK)
    with caplog.at_level(logging.ERROR):
        reply = desk.answer(desk.task("train"))
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "lower the rate" in caplog.text
    assert not (tmp_path / "gradward" / "jobs" / "job-1" / "rounds").exists()


def test_a_site_that_requires_a_perturbation_gets_no_raw_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = desk_with(tmp_path, settings=QUICK)
    desk.settings(perturbation={"required": True})
    with caplog.at_level(logging.ERROR):
        reply = desk.answer(desk.task("train"), perturbed=False)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "perturbation_id" in caplog.text


def test_a_trainer_whose_perturbation_is_missing_does_not_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = desk_with(tmp_path, settings=QUICK)
    del desk.components["perturbation"]
    with caplog.at_level(logging.ERROR):
        reply = desk.answer(desk.task("train"))
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "no Perturbation" in caplog.text


def test_evaluation_stays_on_clean_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def remember(model: Any, images: torch.Tensor, labels: Any, **rest: Any) -> dict[str, float]:
        seen.append(images)
        return {"accuracy": 0.5}

    monkeypatch.setattr("gradward.flare.trainer.evaluate", remember)
    desk = desk_with(tmp_path, settings=QUICK)
    desk.answer(desk.task("train"))
    site = open_site(desk.task("train"))
    clean = desk.job.load_split(site, "validation")
    assert len(seen) == 1 and torch.equal(seen[0], clean.images)


def test_the_figures_are_streamed_and_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(
        "gradward.flare.perturber.stream_scalars", lambda fl_ctx, *rest: sent.append(rest)
    )
    opened(desk_with(tmp_path, settings=QUICK), 3)
    ((_, prefix, figures, step),) = sent
    assert (prefix, step) == ("defense", 3)
    assert figures["rate"] == pytest.approx(1.0, abs=1e-3)
    assert (figures["linkage"], figures["mse"]) == (0.062, 0.988)
    assert set(figures) >= {"clipped", "fit_seconds"}
    assert all(value is None or value == round(value, 3) for value in figures.values())


def test_a_new_run_in_the_same_process_opens_anew(tmp_path: Path, fits: list[str]) -> None:
    desk = desk_with(tmp_path, settings=QUICK)
    opened(desk)
    perturbation = desk.components["perturbation"]
    perturbation.handle_event(EventType.START_RUN, desk.task("train"))
    opened(desk)
    assert fits == ["uniform"], "from the disk"


@pytest.mark.parametrize(
    "arguments",
    [
        {"settings": {"mode": "magic"}},
        {"settings": {"rates": 2.0}},
        {"per_site": {"site-1": {"rate": -1.0}}},
        {"fit_seconds": 0},
        {"fit_seconds": "long"},
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Perturbation(**arguments)


# DP-SGD and noise ---------------------------------------------------------------------------------


def private_job(rounds: int) -> dict[str, Any]:
    return {
        "model_options": {"width": 4, "norm": "group"},
        "training": {
            "batch_size": 8,
            "lr": 0.02,
            "dp_sgd": {"epsilon": 8.0, "delta": 0.01, "rounds": rounds},
        },
    }


def test_dp_sgd_is_accounted_over_the_job_and_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[float] = []
    tags: set[str] = set()

    def remember(fl_ctx: Any, sender: str, prefix: str, values: Any, step: int) -> None:
        sent.extend([values["epsilon"]] if "epsilon" in values else [])
        tags.update(f"{prefix}/{name}" for name in values)

    monkeypatch.setattr("gradward.flare.trainer.stream_scalars", remember)
    desk = Desk(tmp_path, experiment(**private_job(rounds=2)))
    codes = []
    with caplog.at_level(logging.ERROR):
        for number in range(3):
            reply = desk.answer(desk.task("train", f"task-{number}"), number, perturbed=False)
            codes.append(reply.get_return_code())
    assert codes == [ReturnCode.OK, ReturnCode.OK, ReturnCode.EXECUTION_EXCEPTION]
    assert "epsilon" in caplog.text and "is spent" in caplog.text
    assert len(sent) == 2 and sent[0] < sent[1] <= 8.0
    assert "train/steps" in tags and "train/loss" not in tags, "epsilon does not cover the loss"
    account = json.loads((tmp_path / "gradward" / "jobs" / "job-1" / "dp_sgd.json").read_text())
    assert len(account["history"]) == 2


def test_a_damaged_account_stops_the_site(tmp_path: Path) -> None:
    desk = Desk(tmp_path, experiment(**private_job(rounds=2)))
    assert desk.answer(desk.task("train"), 0, perturbed=False).get_return_code() == ReturnCode.OK
    (tmp_path / "gradward" / "jobs" / "job-1" / "dp_sgd.json").write_text("{}")
    reply = desk.answer(desk.task("train"), 1, perturbed=False)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION


def test_the_same_round_has_other_noise_each_time(tmp_path: Path) -> None:
    desk = Desk(tmp_path, experiment(training={"batch_size": 8, "lr": 0.02, "input_noise": 0.3}))
    first, second = (
        from_shareable(desk.answer(desk.task("train"), perturbed=False)).data for _ in range(2)
    )
    assert any((first[name] != second[name]).any() for name in first)


def test_a_secret_generator_holds_more_than_a_seed() -> None:
    one, other = secret_generator(), secret_generator()
    draws = torch.randn(1000, generator=one)
    assert not torch.equal(draws, torch.randn(1000, generator=other))
    assert abs(float(draws.mean())) < 0.15 and abs(float(draws.std()) - 1) < 0.1
    # torch keeps 32 bits of a seed: none of them gives the state of a secret generator.
    state = one.get_state()
    seeded = torch.Generator().manual_seed(one.initial_seed())
    torch.randn(1000, generator=seeded)
    assert not torch.equal(state, seeded.get_state())
