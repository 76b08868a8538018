"""The study of the defences: honest division, bounds, resumption, attackers that find things."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from scipy.stats import binomtest

from gradward.data import DataError, data_root
from gradward.defenses import adversary
from gradward.training import RawImages

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import defenses
from defense_study import claims, study
from defense_study.arms import FRONTIER, middle, settings_of
from defense_study.cells import plan_cells
from defense_study.clients import Clients
from defense_study.defence import Case
from defense_study.federation import QUICK, average, local_update
from defense_study.membership import _area
from defense_study.points import collect
from defense_study.protocol import GALLERY, PUBLIC_SHARE, SETS, Trial, load_trial
from defense_study.report import write_report
from defense_study.scoring import Evidence, pooled
from defense_study.sources import train_start
from defense_study.statistics import best_at_utility, mean, proportion, relative_error
from defense_study.store import CellKey, CellResult, ResultStore
from defense_study.update_view import imitate_updates, link_by_simulation

TINY = replace(
    QUICK, rounds=1, start_epochs=1, victims=4, inverted=4, adapted=1, evaluations=2,
    network_steps=4, shadows=2, fit={"autoencoder_steps": 2, "gate_steps": 1},
)  # fmt: skip
CELL = CellKey("histology", 0, "none", "batch")
SETTINGS = settings_of(FRONTIER)


@pytest.fixture(scope="module")
def trial() -> Trial:
    return load_trial("histology", 0, TINY.victims)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# What the study stands on: nobody is on two sides.


def test_division_of_patients() -> None:
    if data_root() is None:
        pytest.skip("the files of the data sets are not here")
    for name in ("pneumonia", "mnist", "chest-xray"):
        found = load_trial(name, 1, 50)
        parts = [found.known, *found.sites, found.test]
        owners = [set(part.patients or ()) for part in parts]
        assert all(a.isdisjoint(b) for i, a in enumerate(owners) for b in owners[:i])
        decoys = set((found.pool.patients or ())[sum(map(len, found.sites)) :])
        assert decoys.isdisjoint(owners[0] | owners[-1])
        total = len(set().union(*owners, decoys))
        assert len(set(found.public.patients or ())) <= PUBLIC_SHARE * total
        assert found.galleries.shape[1] == GALLERY


def test_galleries_hold_the_victim_once_and_its_class_only(trial: Trial) -> None:
    for victim, row, truth in zip(trial.victims, trial.galleries, trial.truths, strict=True):
        assert int(row[truth]) == int(victim)
        assert int((row == victim).sum()) == 1
        assert torch.equal(trial.pool.images[victim], trial.sites[0].images[victim])
        assert len(trial.pool.labels[row].unique()) == 1


def test_a_set_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETS, "histology", replace(SETS["histology"], site=1000))
    with pytest.raises(DataError, match="do not suffice"):
        load_trial("histology", 0, 4)


def test_generators_are_apart_and_repeatable(trial: Trial) -> None:
    draws = {p: torch.rand(3, generator=trial.generator(*p)) for p in [("a",), ("a", 1), ("b",)]}
    assert torch.equal(draws["a",], torch.rand(3, generator=trial.generator("a")))
    assert not torch.equal(draws["a",], draws["a", 1])
    assert not torch.equal(draws["a",], draws["b",])


# Figures as a sceptic takes them.


def test_proportion_is_wilsons() -> None:
    interval = proportion(13, 300)
    # Two-sided 90 % has the one-sided 95 % bounds.
    expected = binomtest(13, 300).proportion_ci(0.9, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert proportion(0, 300).high < 0.01


def evidence_of(errors: torch.Tensor, priors: torch.Tensor) -> Evidence:
    return Evidence(
        victims=len(errors),
        mse=float(errors.sum()),
        prior=float(priors.sum()),
        mse_mse=float(errors.square().sum()),
        prior_prior=float(priors.square().sum()),
        mse_prior=float((errors * priors).sum()),
    )


def test_relative_error_covers_what_a_bootstrap_covers() -> None:
    generator = torch.Generator().manual_seed(0)
    priors = torch.rand(300, generator=generator, dtype=torch.float64) + 0.5
    errors = 0.6 * priors + 0.2 * torch.rand(300, generator=generator, dtype=torch.float64)
    interval = relative_error(evidence_of(errors, priors))
    rows = torch.randint(300, (4000, 300), generator=generator)
    ratios = errors[rows].mean(dim=1) / priors[rows].mean(dim=1)
    assert interval.value == pytest.approx(float(errors.mean() / priors.mean()))
    assert interval.low == pytest.approx(float(ratios.quantile(0.05)), abs=0.003)
    assert interval.high == pytest.approx(float(ratios.quantile(0.95)), abs=0.003)


def test_whoever_is_worse_than_the_mean_guesses_it() -> None:
    ones = torch.ones(50, dtype=torch.float64)
    interval = relative_error(evidence_of(3 * ones, ones))
    assert (interval.value, interval.low, interval.high) == (1, 1, 1)


def test_an_attack_on_few_victims_that_found_nothing_proves_nothing() -> None:
    many = Evidence(300, 290.0, 300.0, 290.0, 300.0, 290.0, linked=9.0, chance=3.0)
    few = Evidence(8, 8.0, 8.0, 8.0, 8.0, 8.0, linked=0.0, chance=0.08)
    cell = result(leakage={"updates": {"network": many}, "naive": {"batch 1": few}})
    (point,) = collect([cell])
    assert point.informed is not None
    assert point.informed.linkage == proportion(9, 300)
    worse = replace(few, linked=4.0)
    (point,) = collect([replace(cell, leakage={**cell.leakage, "naive": {"batch 1": worse}})])
    assert point.informed is not None
    assert point.informed.linkage == proportion(4, 8)
    # Who holds what the site trained on knows more than any inversion of the update.
    held = {"oracle": {"network": many}, "naive": {"batch 1": worse}}
    (point,) = collect([replace(cell, leakage=held)])
    assert point.informed is not None
    assert point.informed.linkage == proportion(9, 300)
    assert point.naive is not None
    assert point.naive.linkage == proportion(4, 8)


def test_who_does_not_know_the_defence_is_judged_on_all_victims() -> None:
    many = Evidence(300, 200.0, 300.0, 200.0, 300.0, 200.0, correct=30.0, chance=3.0)
    lucky = Evidence(8, 2.0, 8.0, 2.0, 8.0, 2.0, correct=6.0, chance=0.08)
    found = {"naive": {"batch 1 round 0": many, "batch 1 round 3": lucky}}
    (point,) = collect([result(leakage=found)])
    assert point.naive is not None
    assert point.naive.accuracy == proportion(30, 300)
    assert point.naive.victims == 300


def test_utility_is_that_of_the_last_three_rounds() -> None:
    # The first figure is the start's.
    assert result(balanced_accuracy=[0.1, 0.2, 0.6, 0.9, 0.9]).utility == pytest.approx(0.8)
    assert result(balanced_accuracy=[0.1, 0.6]).utility == pytest.approx(0.6)


def test_public_images_alone_are_taken_at_their_best() -> None:
    cells = [
        result(key=CellKey("mnist", seed, arm, setting), balanced_accuracy=found)
        for seed, early, late in ((0, 0.9, 0.8), (1, 0.8, 0.85))
        for arm, setting, found in (
            ("public-only", "-", [early, late]),
            ("class", "-", [early, 0.9]),
        )
    ]
    by_arm = {point.arm: point for point in collect(cells)}
    assert by_arm["public-only"].utility == pytest.approx(0.85)
    gain = by_arm["class"].gain
    assert gain is not None
    assert gain.value == pytest.approx(0.05)


def test_seeds_are_pooled_by_adding() -> None:
    generator = torch.Generator().manual_seed(0)
    errors, priors = torch.rand(2, 40, generator=generator, dtype=torch.float64)
    halves = [evidence_of(errors[:15], priors[:15]), evidence_of(errors[15:], priors[15:])]
    whole = relative_error(evidence_of(errors, priors))
    assert relative_error(pooled(halves)).low == pytest.approx(whole.low)


def test_a_single_seed_has_no_interval() -> None:
    assert mean([0.1]).high == math.inf
    assert mean([0.1, 0.1, 0.1]).high == pytest.approx(0.1)


def test_utility_is_matched_between_settings() -> None:
    curve = [(0.9, 0.0), (0.8, 0.4), (0.6, 1.0)]
    assert best_at_utility(curve, 0.85) == pytest.approx(0.2)
    assert best_at_utility(curve, 0.7) == pytest.approx(0.7)
    assert best_at_utility(curve, 0.95) is None
    # A stronger setting that happens to cost less is the arm's own merit.
    assert best_at_utility([(0.9, 0.0), (0.7, 0.5), (0.9, 0.6)], 0.85) == pytest.approx(0.6)


def test_membership_areas_tell_a_leak_from_none() -> None:
    generator = torch.Generator().manual_seed(0)
    members = torch.rand(8, 400, generator=generator) < 0.5
    base = torch.randn(400, generator=generator, dtype=torch.float64).expand(8, 400)
    noise = torch.randn(8, 400, generator=generator, dtype=torch.float64)
    area, upper = _area(base + noise, members)
    assert abs(area - 0.5) < 0.03 < upper - 0.45
    leaking, _ = _area(10 * base + noise + 2.0 * members, members)
    assert leaking > 0.85


# The store.


def result(**changes: object) -> CellResult:
    evidence = Evidence(victims=4, mse=1.0, prior=2.0, linked=1.0)
    whole = CellResult(CELL, "ok", "", [0.5, 0.6], {"oracle": {"raw": evidence}})
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_results_survive_and_an_interrupted_line_does_not(tmp_path: Path) -> None:
    file = tmp_path / "full.jsonl"
    ResultStore(file).add(result())
    with file.open("a") as stream:
        stream.write('{"version": 1, "key": {"set": "mn')
    again = ResultStore(file)
    assert again.done(CELL)
    assert again.results == [result()]
    other = replace(CELL, seed=1)
    again.add(result(key=other))
    assert [r.key.seed for r in ResultStore(file).results] == [0, 1]


def test_a_failure_is_tried_again_and_a_refusal_is_not(tmp_path: Path) -> None:
    file = tmp_path / "full.jsonl"
    store = ResultStore(file)
    store.add(result(status="failed"))
    assert not store.done(CELL)
    store.add(result(status="refused"))
    assert ResultStore(file).done(CELL)


def test_only_what_is_missing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[CellKey] = []

    def run(cell: CellKey, *rest: object) -> CellResult:
        ran.append(cell)
        return result(key=cell)

    monkeypatch.setattr(study, "run_cell", run)
    monkeypatch.setattr(study, "train_judge", lambda *rest: torch.nn.Identity())
    store = ResultStore(tmp_path / "full.jsonl")
    store.add(result())
    cells = plan_cells(["histology"], ["none", "input-noise"], [0], SETTINGS)
    study.run_study(cells, FRONTIER, store, TINY)
    assert CELL not in ran
    assert len(ran) == len(FRONTIER["input-noise"].settings)
    study.run_study(cells, FRONTIER, store, TINY)
    assert len(ran) == len(FRONTIER["input-noise"].settings)


# The attackers' tools against the real thing.


def test_many_clients_at_once_are_what_each_is_alone(trial: Trial, tmp_path: Path) -> None:
    defence = FRONTIER["none"].build(Case(trial, "batch", TINY, tmp_path))
    model = defence.model(trial)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    images = trial.public.subset(range(3))
    together = Clients(model, start).updates(images.images, images.labels, defence.settings.lr)
    settings = replace(defence.settings, batch_size=1, steps=1)
    for row in range(3):
        one = images.subset([row])
        source = RawImages(one.images, one.labels)
        alone = local_update(model, start, source, settings, torch.Generator())
        for name, value in together.items():
            torch.testing.assert_close(value[row], alone[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("arm", "setting"), [("no-buffers", "-"), ("dp-sgd", "sigma=1e-9")])
def test_an_attacker_imitates_what_leaves_a_site(
    trial: Trial, tmp_path: Path, arm: str, setting: str
) -> None:
    defence = FRONTIER[arm].build(Case(trial, setting, TINY, tmp_path))
    model = defence.model(trial)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    images = trial.public.subset(range(3))
    imitated = imitate_updates(defence, model, start, images, torch.Generator())
    for row in range(3):
        one = images.subset([row])
        source = RawImages(one.images, one.labels)
        sent = defence.one_step_update(model, start, source, torch.Generator())
        assert set(imitated) == {name for name in sent if not name.endswith("tracked")}
        for name, value in imitated.items():
            torch.testing.assert_close(value[row], sent[name], rtol=1e-3, atol=1e-6)


def test_linkage_by_simulation_finds_every_bare_update(trial: Trial, tmp_path: Path) -> None:
    defence = FRONTIER["none"].build(Case(trial, "batch", TINY, tmp_path))
    model = defence.model(trial)
    start = train_start(trial, defence, TINY)
    victims = trial.victim_images
    clients = Clients(model, start).updates(victims.images, victims.labels, defence.settings.lr)
    assert float(link_by_simulation(trial, defence, model, start, clients).mean()) == 1
    noise = {name: torch.randn_like(value) for name, value in clients.items()}
    assert float(link_by_simulation(trial, defence, model, start, noise).mean()) < 1


def test_averages_keep_counters_whole() -> None:
    updates = [
        {"w": torch.tensor([value]), "n": torch.tensor(count)}
        for value, count in ((1.0, 3), (2.0, 4))
    ]
    found = average(updates)
    assert float(found["w"]) == 1.5
    assert found["n"].dtype == torch.int64


# The whole of it.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResultStore, Path]:
    """A tiny study of arms of each kind."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("study")
    store = ResultStore(folder / "quick.jsonl")
    arms = ["none", "public-only", "input-noise", "update-noise", "dp-sgd", "learned"]
    middles = {name: (middle(own),) for name, own in SETTINGS.items()}
    cells = plan_cells(["histology"], arms, [0], middles)
    short = partial(adversary.OracleSettings, latent_steps=2, picture_steps=2, batch_size=4)
    with pytest.MonkeyPatch.context() as patch:
        # The acceptance gate's attacker, which has tests of its own.
        patch.setattr(adversary, "OracleSettings", short)
        study.run_study(cells, FRONTIER, store, TINY, folder / "sheets")
    return store, folder


def test_every_kind_of_arm_runs(finished: tuple[ResultStore, Path]) -> None:
    store, folder = finished
    assert {r.key.arm: r.reason for r in store.results if r.status != "ok"} == {}
    by_arm = {r.key.arm: r for r in store.results}
    assert set(by_arm["none"].leakage) == {"guess", "oracle", "updates", "adapted", "naive"}
    raw = by_arm["none"].leakage["oracle"]["raw"]
    assert (raw.mse, raw.linked) == (0, raw.victims)
    guess = by_arm["public-only"].leakage["guess"]["class mean"]
    assert guess.linked == pytest.approx(guess.chance, abs=1e-5)
    assert {"network", "wiener", "latent"} <= set(by_arm["learned"].leakage["oracle"])
    assert by_arm["learned"].facts["acceptance"]["victims"] > 0
    # Training on public images alone faces no attacker.
    assert len(list((folder / "sheets").glob("*.png"))) == len(by_arm) - 1


def test_report_of_what_is_there(finished: tuple[ResultStore, Path]) -> None:
    store, folder = finished
    files = write_report(store.results, [], folder)
    assert {file.name for file in files} == {"report.md", "frontier.png"}
    text = (folder / "report.md").read_text()
    assert "| input-noise | .4 |" in text


def test_verdicts_on_made_up_figures() -> None:
    def cell(arm: str, setting: str, utility: float, ratio: float) -> CellResult:
        n = 300
        leak = Evidence(n, ratio * n, n, ratio**2 * n, n, ratio * n, linked=0.0, chance=n / 100)
        key = CellKey("pneumonia", 0, arm, setting)
        return CellResult(key, "ok", "", [0.5, utility], {"oracle": {"network": leak}})

    cells = [
        cell("none", "batch", 0.95, 0.0),
        cell("input-noise", ".4", 0.85, 0.8),
        cell("learned", "4", 0.91, 0.96),
    ]
    # At .90 input noise reaches .4 of the way to .8, which .96 beats by far.
    text = "\n".join(claims.verdicts({"pneumonia": collect(cells)}, {}))
    assert "**reached**: learned 4 at utility 0.910: 0.960 (≥ 0.960)" in text
    assert "against 0.400 of input-noise" in text
    cells[2] = cell("learned", "4", 0.91, 0.42)
    text = "\n".join(claims.verdicts({"pneumonia": collect(cells)}, {}))
    assert "**not reached**: learned 4 at utility 0.910" in text


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defenses, "QUICK", TINY)
    arguments = ["--quick", "--sets", "histology", "--seeds", "0", "--out", str(tmp_path)]
    ran = CliRunner().invoke(defenses.main, [*arguments, "--arms", "public-only"])
    assert ran.exit_code == 0, ran.output
    assert "histology seed 0 public-only" in ran.output
    again = CliRunner().invoke(defenses.main, [*arguments, "--arms", "public-only"])
    assert again.output == ""
    report = CliRunner().invoke(defenses.main, ["--quick", "--out", str(tmp_path), "--report"])
    assert report.exit_code == 0
    assert (tmp_path / "report.md").is_file()
    wrong = CliRunner().invoke(defenses.main, ["--sets", "imagenet"])
    assert wrong.exit_code == 2
    assert "mnist" in wrong.output
