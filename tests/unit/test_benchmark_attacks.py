"""The comparison of attacks: right figures, equal facts, resumption, peers that are not there."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from gradward.attacks.objectives import CosineDistance
from gradward.attacks.simulation import ClientSimulator
from gradward.metrics.similarity import PSNR_CAP
from gradward.models import build_model

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import attacks
from attack_study import contenders, pictures, study
from attack_study.cases import CASES, FAMILIES
from attack_study.contenders import CONTENDERS, Contender, Outcome, run_ours
from attack_study.cost import Cost, measure, summary
from attack_study.counting import Counting, count_labels
from attack_study.instances import Instance, make_instance
from attack_study.peers import Peers, portable, request_of
from attack_study.report import write_report
from attack_study.scoring import score
from attack_study.store import Cell, Record, Store
from attack_study.study import label_accuracy, plan, run_study
from attack_study.summary import rows_of
from attack_study.targets import verdicts

OURS = CONTENDERS["bn_fc_1"][0].name
PEER = "breaching invertinggradients"
CELL = Cell("bn_fc_1", OURS, 0, 0, 5.0)


@pytest.fixture(autouse=True)
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded pictures, so that figures do not depend on what else is there."""
    torch.set_num_threads(1)
    monkeypatch.setattr(pictures, "data_root", lambda: None)
    pictures.load_pictures.cache_clear()


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return make_instance(CASES["bn_fc_4"], 0, 0, tmp_path)


# Right figures.


def test_the_truth_scores_best_in_any_order(instance: Instance) -> None:
    found = score(instance.truth.flip(0), instance.truth, instance.prior)
    assert found["psnr"] == PSNR_CAP
    assert found["ssim"] == pytest.approx(1, abs=1e-4)
    assert found["recovered"] == pytest.approx(1, abs=1e-3)


def test_the_prior_recovers_nothing(instance: Instance) -> None:
    guess = instance.prior.expand_as(instance.truth)
    found = score(guess, instance.truth, instance.prior)
    assert found["recovered"] == 0
    assert found["ssim"] == found["prior_ssim"]


def test_labels_count_whatever_their_order() -> None:
    truth = torch.tensor([0, 0, 1, 3])
    assert label_accuracy(torch.tensor([1, 0, 3, 0]), truth) == 1
    assert label_accuracy(torch.tensor([0, 1, 1, 2]), truth) == 0.5


def test_victims_train_nobodys_model_and_are_no_public_images() -> None:
    found = pictures.load_pictures(32)
    parts = [found.victims.images, found.training.images, found.control.images]
    sets = [{image.numpy().tobytes() for image in images} for images in parts]
    assert all(a.isdisjoint(b) for i, a in enumerate(sets) for b in sets[:i])
    with pytest.raises(IndexError, match="groups of 8"):
        found.victims_of(1000, 8)


def test_an_instance_is_repeatable_and_its_order_is_the_clients(tmp_path: Path) -> None:
    case = CASES["bn_fc_8"]
    one, two = (make_instance(case, 0, 1, tmp_path) for _ in range(2))
    assert torch.equal(one.truth, two.truth)
    observation = one.update.observation
    assert observation.steps == 2
    simulator = ClientSimulator(observation, case.settings)
    target = list(observation.parameter_update.values())
    batches = [[0, 1, 2, 3], [4, 5, 6, 7]]
    found = simulator.run(one.truth, one.update.labels, batches)
    assert CosineDistance(target)(found.parameter_updates) < 1e-5
    wrong = simulator.run(one.truth.flip(0), one.update.labels, batches)
    assert CosineDistance(target)(wrong.parameter_updates) > 1e-2


def test_withheld_buffers_are_withheld_from_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(CASES["bn_fc_1"], withheld=True)
    found = make_instance(case, 0, 0, tmp_path)
    assert not found.update.observation.has_batch_statistics
    assert not found.control.observation.has_batch_statistics
    assert request_of(CONTENDERS["bn_fc_1"][1], found, 1.0)["batch_statistics"] == {}


def test_ours_runs_within_its_budget_and_the_control_fails(tmp_path: Path) -> None:
    case = replace(CASES["bn_fc_1"], start="prior")
    found = make_instance(case, 0, 0, tmp_path)
    mine = Contender("mine", "gradward", "batchnorm", evaluations=12)
    outcome = run_ours(mine, found, 60.0)
    assert (outcome.status, outcome.reason) == ("ok", "")
    assert outcome.evaluations <= 12
    control = run_ours(replace(mine, control=True), found, 60.0)
    assert outcome.images is not None
    assert control.images is not None
    assert not torch.equal(outcome.images, control.images)


# Peers.


def test_peers_that_are_missing_are_told(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named peers' >&2; exit 1\n")
    python.chmod(0o755)
    peers = Peers(str(python))
    assert peers.versions == {}
    assert peers.missing == dict.fromkeys(("breaching", "leakpro"), "No module named peers")


def test_a_peer_that_dies_fails_its_cell_alone(tmp_path: Path, instance: Instance) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\ncase $3 in --version) echo peer 1;; *) echo dead >&2; exit 1;; esac\n"
    )
    python.chmod(0o755)
    outcome = Peers(str(python)).run(CONTENDERS["bn_fc_4"][1], instance, 0.1)
    assert (outcome.status, outcome.reason) == ("failed", "dead")


@pytest.mark.parametrize("name", ["lenet", "bn_cnn", "attack_study.networks:mlp"])
def test_peers_get_the_same_network(name: str, tmp_path: Path) -> None:
    model = build_model(name, in_channels=1, num_classes=4, image_size=[32, 32], seed=0)
    torch.save(portable(model), tmp_path / "model.pt")
    loaded: nn.Module = torch.load(tmp_path / "model.pt", weights_only=False)
    images = torch.rand(2, 1, 32, 32)
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in model.named_parameters()]
    torch.testing.assert_close(loaded(images), model(images))


def test_what_peers_are_told_is_no_more_than_the_case_says(tmp_path: Path) -> None:
    inferred = make_instance(CASES["bn_fc_8_inferred"], 0, 0, tmp_path)
    request = request_of(CONTENDERS["bn_fc_8_inferred"][1], inferred, 1.0)
    assert request["labels"] is None
    assert request["start"] is None
    truth = inferred.truth
    tensors = [v for v in request.values() if isinstance(v, torch.Tensor)]
    assert not any(v.shape == truth.shape and torch.equal(v, truth) for v in tensors)


# Resumption, tables, verdicts.


def record(cell: Cell = CELL, **scores: float) -> Record:
    values = {"psnr": 41.0, "ssim": 0.9, "recovered": 0.8, "prior_ssim": 0.5} | scores
    return Record(cell, "ok", "", 0.1, 100, cell.budget, cell.budget, values)


def test_only_what_is_missing_runs(tmp_path: Path) -> None:
    ran: list[str] = []

    def run(contender: Contender, instance: Instance, budget: float) -> Outcome:
        ran.append(contender.name)
        if contender.name == PEER:
            return Outcome("failed", "broke")
        return Outcome("ok", images=instance.truth, loss=0.0, cpu_seconds=budget)

    store = Store(tmp_path / "records")
    cells = plan(["bn_fc_1"], 1, 1, [5.0], ["gradward", "breaching"])
    for _ in range(2):
        run_study(cells, store, run, tmp_path, lambda text: None)
    # What failed is tried again, and nothing else.
    assert ran == [cell.contender for cell in cells] + [PEER]
    assert {r.cell: r.status for r in store.records}[CELL] == "ok"
    assert next(r for r in store.records if r.cell == CELL).scores["psnr"] == PSNR_CAP


def test_controls_run_once_and_unknown_attacks_never(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = plan(["resnet18_64"], 1, 1, [1.0, 2.0], ["gradward"])
    controls = [(c.contender, c.budget) for c in cells if "control" in c.contender]
    assert {budget for _, budget in controls} == {2.0}
    assert len(controls) == len(set(controls)) == 2
    monkeypatch.setattr(contenders, "ATTACK_NAMES", ("matching",))
    assert plan(["analytic_1"], 1, 1, [1.0], ["gradward"]) == []


def test_names_of_contenders_and_files_are_unique() -> None:
    assert set(CONTENDERS) == set(CASES) == {n for names in FAMILIES.values() for n in names}
    for case, found in CONTENDERS.items():
        assert len({Cell(case, c.name, 0, 0, 5.0).file for c in found}) == len(found)


def test_verdicts_compare_with_the_best_peer_at_equal_time(tmp_path: Path) -> None:
    slow = replace(CELL, contender=PEER, budget=50.0)
    records = [record(), record(replace(CELL, contender=PEER), psnr=30.5), record(slow, psnr=99.0)]
    text = {v.target: v for v in verdicts(rows_of(records), {}, {})}
    floor = text["bn_fc_1: median psnr at least 40"]
    above = text["bn_fc_1: median psnr at least 10 above the best peer's"]
    assert (floor.reached, floor.met) == ("41", True)
    assert (above.reached, above.met) == ("41 against 30.5", True)
    assert text["lenet_1: median psnr at least 45"].met is None
    worse = [record(psnr=39.0), records[1]]
    assert {v.met for v in verdicts(rows_of(worse), {}, {}) if "bn_fc_1" in v.target} == {False}


def test_verdicts_on_another_contender_on_the_control_and_on_labels() -> None:
    withheld = replace(CELL, case="resnet18_64_withheld")
    names = {"GradWard features, learned prior": 0.3, "GradWard matching, no polish": 0.4}
    records = [record(replace(withheld, contender=name), recovered=r) for name, r in names.items()]
    control = replace(withheld, contender="GradWard maps, control")
    records.append(record(control, recovered=0.1))
    other = replace(withheld, contender="GradWard features, control")
    records.append(record(other, recovered=-0.1))
    labels = {"bn_cnn, 32x32, trained": {"a": 1.0, "b": 0.75}, "lenet, 32x32, trained": {"a": 1.0}}
    told = {v.target: (v.reached, v.met) for v in verdicts(rows_of(records), {}, labels)}
    case = "resnet18_64_withheld"
    own = "at least that of GradWard matching, no polish"
    assert told[f"{case}, GradWard features, learned prior: median recovered {own}"] == (
        "0.3 against 0.4",
        False,
    )
    assert told[f"{case}: median recovered {own}"] == ("not run", None)
    assert told[f"{case} control: median recovered at most 0"] == ("0.1", False)
    of_labels = "labels of eight images, {}: at least 95% right"
    assert told[of_labels.format("bn_cnn, 32x32, trained")] == ("88%", False)
    assert told[of_labels.format("lenet, 32x32, trained")] == ("100%", True)
    assert told[of_labels.format("lenet, 32x32, fresh")] == ("not run", None)
    assert not any("resnet18, 64x64" in text for text in told)


def test_report_of_what_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "records")
    store.add(record())
    store.add(record(replace(CELL, picture=1), psnr=43.0))
    store.add(Record(replace(CELL, contender=PEER), "failed", "no memory"))
    files = write_report(tmp_path)
    assert {file.name for file in files} == {"results.json", "report.md", "plot.png"}
    text = (tmp_path / "report.md").read_text()
    assert "42.0 (41.0 to 43.0)" in text
    assert "no memory" in text


def test_costs_are_ratios_of_medians_in_turns(tmp_path: Path) -> None:
    instance = make_instance(CASES["bn_fc_1"], 0, 0, tmp_path)
    options = (("polish", 0.0), ("distance", "cosine"))
    for cost in (Cost("bn_fc_1", "matching", options), Cost("bn_fc_1", "batchnorm")):
        pairs = measure(cost, instance, 1)
        assert all(loop > 0 and floor > 0 for loop, floor in pairs)
    assert summary([(3.0, 2.0), (1.0, 1.0), (4.0, 2.0)])["ratio"] == 1.5


def test_labels_are_counted_once(tmp_path: Path) -> None:
    told: list[str] = []
    fresh = [Counting("bn_cnn", 32, False)]
    for groups in (1, 2):
        count_labels(fresh, groups, 1, tmp_path, tmp_path, told.append)
    assert "over 1 updates" in told[0]
    assert "over 2 updates" in told[1]


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nobody:
        def __init__(self, *_: object) -> None:
            self.missing, self.versions = {"breaching": "not installed"}, {}

    monkeypatch.setattr(attacks, "Peers", Nobody)
    fast = {
        case: tuple(replace(contender, evaluations=2) for contender in found)
        for case, found in CONTENDERS.items()
    }
    monkeypatch.setattr(study, "CONTENDERS", fast)
    options = ["--seeds", "1", "--pictures", "1", "--out", str(tmp_path), "--cache", str(tmp_path)]
    ran = CliRunner().invoke(attacks.main, ["--cases", "lenet", "--cpu-seconds", "5", *options])
    assert ran.exit_code == 0, ran.output
    assert "breaching does not run here" in ran.output
    assert "GradWard ran alone" in (tmp_path / "report.md").read_text()
    for bad in (["--cases", "imagenet"], ["--cpu-seconds", "0"], ["--cpu-seconds", "fast"]):
        assert CliRunner().invoke(attacks.main, [*bad, *options]).exit_code == 2


def test_a_report_of_nothing_replaces_none(tmp_path: Path) -> None:
    kept = tmp_path / "report.md"
    kept.write_text("measured")
    ran = CliRunner().invoke(attacks.main, ["--report", "--out", str(tmp_path)])
    assert ran.exit_code == 1
    assert "holds no records" in ran.output
    assert kept.read_text() == "measured"
