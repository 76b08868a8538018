"""The attacks recover a real picture, the control does not, and refusals are told."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradward.attacks import (
    AttackRefused,
    AttackSpec,
    Budget,
    Knowledge,
    Observation,
    control_update,
    images_in_update,
    matching,
    run_portfolio,
)
from gradward.attacks.batches import assumed_batches
from gradward.attacks.budget import Allowance, Meter
from gradward.attacks.control import withhold_alike
from gradward.attacks.portfolio import AttackResult
from gradward.attacks.search import BudgetSpent, Search
from gradward.metrics.similarity import psnr, ssim
from gradward.models import build_model
from gradward.training import TrainingSettings, state_copy

from .attack_fixtures import (
    SmallNet,
    observe,
    patches,
    public_mean,
    recovered,
    small_net,
    train,
)

ONE = TrainingSettings(batch_size=1, lr=0.02)
TRUTH = patches()[200:201]
LABEL = torch.tensor([2])


def attack(
    observation: Observation, *names: str, settings: TrainingSettings = ONE, **options: object
) -> dict[str, AttackResult]:
    arguments: dict = {"prior": public_mean(), "n_images": 1, "seed": 0, "budget": Budget(20)}
    results = run_portfolio(
        observation,
        settings=settings,
        attacks=[AttackSpec(name) for name in names],
        **{**arguments, **options},
    )
    return {result.attack: result for result in results}


@pytest.fixture(scope="module")
def one() -> Observation:
    return observe(small_net(), TRUTH, LABEL, ONE)[0]


@pytest.fixture(scope="module")
def control() -> Observation:
    model = small_net()
    update = control_update(
        model, state_copy(model), patches()[:20], torch.arange(20) % 4, ONE, 1, seed=0
    )
    return Observation.from_update(model, state_copy(model), update)


def test_matching_recovers_the_picture_and_the_control_does_not(
    one: Observation, control: Observation
) -> None:
    budget = Budget(500)
    real = attack(one, "matching", budget=budget)["matching"]
    wrong = attack(control, "matching", budget=budget)["matching"]

    assert real.status == wrong.status == "ok"
    assert real.images is not None and wrong.images is not None
    assert real.evaluations == 500
    assert real.labels is not None and real.labels.tolist() == LABEL.tolist()
    assert real.knowledge["labels"] == "inferred"
    assert real.images.dtype == torch.float32
    assert bool((real.images == real.images.clamp(0, 1)).all())
    assert recovered(real.images[0], TRUTH[0], public_mean()) > 0.8
    assert recovered(wrong.images[0], TRUTH[0], public_mean()) < 0.05


def test_a_fresh_lenet_gives_its_picture_away_from_noise() -> None:
    """One of one channel, within 500 evaluations, as docs/attacks.md has it of chest X-rays."""
    settings = TrainingSettings(batch_size=1, lr=0.1)
    truth = TRUTH.mean(dim=1, keepdim=True)
    model = build_model("lenet", in_channels=1, num_classes=10, image_size=[32, 32], seed=0)
    (result,) = run_portfolio(
        observe(model, truth, LABEL, settings)[0],
        prior=torch.zeros(1, 32, 32),
        n_images=1,
        settings=settings,
        attacks=[AttackSpec("matching", start="random")],
        budget=Budget(500),
        seed=0,
    )
    assert result.images is not None and result.evaluations <= 500
    assert result.knowledge["prior"] == "lacked"
    assert float(psnr(result.images, truth)) >= 45


def test_features_alone_beat_the_prior(one: Observation, control: Observation) -> None:
    budget = Budget(400)
    real = attack(one, "features", budget=budget)["features"]
    wrong = attack(control, "features", budget=budget)["features"]
    assert real.images is not None and wrong.images is not None
    assert recovered(real.images[0], TRUTH[0], public_mean()) > 0.2
    assert recovered(wrong.images[0], TRUTH[0], public_mean()) < 0.05
    assert real.labels is None


def test_a_first_stage_lost_in_noise_does_not_lead_the_second_astray(
    one: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a trained network the angle of noise can be less than the prior's."""

    def lost(loss: Any, start: Tensor, lr: float, allowance: Allowance) -> Search:
        search = Search(allowance)
        search.images = torch.rand(start.shape, generator=torch.Generator().manual_seed(0))
        search.loss = float(loss(search.images))
        return search

    monkeypatch.setattr(matching, "descend_signed_adam", lost)
    found = attack(one, "matching", budget=Budget(30))["matching"]
    assert found.images is not None and found.evaluations == 30
    assert recovered(found.images[0], TRUTH[0], public_mean()) > 0.17, "0.12 from noise"


def test_a_batch_of_four_is_read_from_the_last_layers_gradient() -> None:
    settings = TrainingSettings(batch_size=4, lr=0.02)
    grey = patches().mean(dim=1, keepdim=True)
    truth, labels = grey[200:204], torch.arange(4)
    model = build_model("bn_cnn", in_channels=1, num_classes=4, image_size=[32, 32], seed=0)
    (result,) = attack(
        observe(model, truth, labels, settings)[0],
        "matching",
        settings=settings,
        prior=grey[:128].mean(dim=0),
        n_images=4,
        labels=labels,
        budget=Budget(500),
    ).values()
    assert result.images is not None and result.knowledge["labels"] == "given"
    # Each label belongs to one image, so that they come out in order.
    assert float(ssim(result.images, truth).min()) > 0.9


class Norms(nn.Module):
    """So many BatchNorm channels that their statistics determine a small picture."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential()
        for stage, (inner, outer) in enumerate([(3, 256), (256, 64), (64, 64)]):
            self.body.append(nn.Conv2d(inner, outer, 5, stride=1 + stage, padding=2))
            self.body.append(nn.BatchNorm2d(outer))
            self.body.append(nn.ELU())
        self.fc = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images).mean((2, 3)))


def test_batch_statistics_alone_recover_a_small_picture() -> None:
    torch.manual_seed(0)
    model, truth = Norms(), TRUTH[..., :16, :16]
    prior = patches()[:128, :, :16, :16].mean(0)
    labels = torch.tensor([1])
    real = observe(model, truth, labels, ONE)[0]
    wrong = observe(model, patches()[5:6, :, :16, :16], labels, ONE)[0]
    found = [
        attack(o, "batchnorm", prior=prior, budget=Budget(400))["batchnorm"] for o in (real, wrong)
    ]
    errors = [float((r.images - truth).square().mean()) for r in found if r.images is not None]
    assert errors[0] < 0.5 * float((prior - truth).square().mean())
    assert errors[0] < 0.5 * errors[1]
    assert found[0].knowledge["learning_rate"] == "lacked"


def test_the_same_seed_gives_the_same_images_and_another_one_others() -> None:
    settings = TrainingSettings(batch_size=2, lr=0.02)
    two = observe(small_net(), patches()[200:204], torch.tensor([0, 1, 2, 3]), settings)[0]
    runs = [
        attack(two, "matching", "batchnorm", settings=settings, n_images=4, seed=seed)
        for seed in (0, 0, 1)
    ]
    for name in ("matching", "batchnorm"):
        first, again, other = (run[name].images for run in runs)
        assert first is not None and again is not None and other is not None
        assert first.shape == (4, 3, 32, 32)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_what_does_not_apply_is_skipped_with_its_reason(one: Observation) -> None:
    before, update, _ = train(small_net(), TRUTH, LABEL, ONE)
    withheld = {k: v for k, v in update.items() if "running" not in k}
    bare = Observation.from_update(small_net(), before, withheld)
    assert "no batch statistics" in attack(bare, "batchnorm")["batchnorm"].reason

    adam = TrainingSettings(batch_size=1, optimizer="adam")
    by_adam = attack(one, "matching", "features", "batchnorm", settings=adam)
    assert [r.status for r in by_adam.values()] == ["skipped", "skipped", "ok"]
    assert "adam" in by_adam["matching"].reason

    many = attack(one, "matching", "features", "batchnorm", n_images=33)
    assert [r.status for r in many.values()] == ["skipped"] * 3
    assert "33 images" in many["matching"].reason
    assert many["matching"].images is None and many["matching"].knowledge == {}


def test_an_attack_that_breaks_does_not_stop_the_others(
    one: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradward.attacks.matching import MatchingOptions

    def broken(*_: object) -> Search:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(MatchingOptions, "run", broken)
    results = attack(one, "matching", "features")
    assert results["matching"].status == "failed"
    assert results["matching"].reason == "RuntimeError: out of memory"
    assert results["features"].status == "ok"


def test_a_loss_that_is_not_finite_fails(one: Observation) -> None:
    prior = torch.full((3, 32, 32), math.nan)
    results = attack(one, "batchnorm", "matching", prior=prior)
    assert {r.status for r in results.values()} == {"failed"}
    assert "not finite" in results["batchnorm"].reason


class Once(torch.autograd.Function):
    """The square root of a library that differentiates once."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        root = values.clamp_min(1e-3).sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope: Tensor) -> Tensor:
        return slope / (2 * ctx.saved_tensors[0])


class RootLayer(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return Once.apply(values)


def test_layers_that_cannot_be_attacked_are_refused_by_name() -> None:
    model = small_net()
    model.body[2] = RootLayer()
    rooted = observe(model, TRUTH, LABEL, ONE)[0]
    refused = attack(rooted, "matching", "features")
    assert refused["matching"].status == "skipped"
    assert "'body.2' (RootLayer) has no second derivative" in refused["matching"].reason
    assert refused["features"].status == "ok", "one derivative is enough for it"

    model = small_net()
    model.body[0] = nn.utils.parametrizations.spectral_norm(model.body[0])
    spectral = attack(observe(model, TRUTH, LABEL, ONE)[0], "matching")["matching"]
    assert spectral.status == "skipped"
    assert "'body.0.parametrizations.weight.0' (_SpectralNorm)" in spectral.reason


class CountingNet(SmallNet):
    """It counts its calls while it trains, in a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            self.calls = self.calls + 1
        return super().forward(values)


def test_a_buffer_of_the_network_itself_is_refused_as_such() -> None:
    result = attack(observe(CountingNet(), TRUTH, LABEL, ONE)[0], "matching")["matching"]
    assert result.reason.startswith("the network itself (CountingNet) changes its buffer 'calls'")


def test_why_labels_lack_is_told_where_they_are_needed_alone() -> None:
    """Of a network without a linear layer several images' labels cannot be inferred."""
    torch.manual_seed(0)
    settings = TrainingSettings(batch_size=2, lr=0.02)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    two, given = (
        observe(model, patches()[200:202], torch.tensor([0, 1]), settings)[0],
        {
            "settings": settings,
            "n_images": 2,
        },
    )
    refused = attack(two, "analytic", "features", "maps", "matching", **given)
    assert refused["matching"].reason == (
        "the labels are not known (the model has no linear layer at its end); labels given to the "
        "attacker would do"
    )
    assert refused["analytic"].reason == "the model has no linear layer"
    # Labels would not help it.
    assert refused["features"].reason == "the model has no linear layer at its end"
    assert refused["maps"].reason == "2 images are more than the limit of 1"
    labelled = attack(two, "matching", labels=torch.tensor([0, 1]), **given)["matching"]
    assert labelled.status == "ok", labelled.reason

    adam = attack(two, "matching", n_images=2, settings=replace(settings, optimizer="adam"))
    assert adam["matching"].reason == "only sgd can be simulated, the client uses adam"


def test_given_labels_are_used_and_declared(one: Observation) -> None:
    result = attack(one, "matching", labels=torch.tensor([1]))["matching"]
    assert result.labels is not None and result.labels.tolist() == [1]
    assert result.knowledge["labels"] == "given"


def test_the_search_keeps_its_best_iterate() -> None:
    search = Search(Allowance(Meter(Budget(4))))
    for loss in (3.0, 1.0, 2.0):
        search.record(torch.tensor(loss), torch.tensor([loss]))
    with pytest.raises(BudgetSpent):
        search.record(torch.tensor(math.nan), torch.tensor([0.0]))
    assert search.loss == 1.0
    assert search.images is not None and search.images.tolist() == [1.0]


def test_budget() -> None:
    assert Budget(100).evaluations_for(50) == 100
    assert Budget(100, image_evaluations=400).evaluations_for(8) == 50
    assert Budget(image_evaluations=400).evaluations_for(400) == 10
    with pytest.raises(ValueError, match="evaluations must be positive"):
        Budget(0)
    with pytest.raises(ValueError, match="at least one of evaluations"):
        Budget()


@pytest.mark.parametrize("bound", ["seconds", "cpu_seconds"])
def test_time_ends_a_search(bound: str) -> None:
    started = Search(Allowance(Meter(Budget(**{bound: 1e-9}))))
    with pytest.raises(BudgetSpent):
        started.record(torch.tensor(1.0), torch.zeros(1))


def test_what_a_stage_leaves_over_is_the_next_ones() -> None:
    meter = Meter(Budget(100))
    whole = Allowance(meter)
    first = whole.until(0.5)
    assert first.progress == 0
    for _ in range(25):
        meter.count()
    assert first.progress == 0.5
    second = whole.until(1.0)
    for _ in range(75):
        assert second.progress < 1
        meter.count()
    assert second.progress == first.progress == 1


def test_a_search_that_gains_nothing_ends() -> None:
    meter = Meter(Budget(10_000))
    flat = Search(Allowance(meter), ends_on_plateau=True)
    with pytest.raises(BudgetSpent):
        for _ in range(10_000):
            flat.record(torch.tensor(1.0), torch.zeros(1))
    assert meter.evaluations < 200


def test_restarts_share_the_budget_and_the_lowest_loss_wins(one: Observation) -> None:
    told: list[tuple[str, float]] = []
    (result,) = run_portfolio(
        one,
        prior=public_mean(),
        n_images=1,
        settings=ONE,
        attacks=[AttackSpec("matching", restarts=3)],
        budget=Budget(60),
        seed=0,
        progress=lambda name, share: told.append((name, share)),
    )
    losses = [restart.loss for restart in result.restarts]
    assert len(set(losses)) == 3 and result.loss == min(losses)
    assert result.images is not None
    assert torch.equal(result.images, result.restarts[losses.index(min(losses))].images)
    assert result.evaluations == 60
    assert told == sorted(told) and told[-1] == ("matching", 1.0)


def test_number_of_images(one: Observation) -> None:
    three = observe(
        small_net(), patches()[:6], torch.arange(6) % 4, TrainingSettings(batch_size=2)
    )[0]
    assert images_in_update(three, TrainingSettings(batch_size=2), None) == 6
    assert images_in_update(three, TrainingSettings(batch_size=2, epochs=3), None) == 2
    assert images_in_update(three, TrainingSettings(batch_size=2), 5) == 5
    bare, update, _ = train(small_net(), TRUTH, LABEL, ONE)
    blind = Observation.from_update(
        small_net(), bare, {k: v for k, v in update.items() if "num_batches" not in k}
    )
    assert images_in_update(blind, TrainingSettings(batch_size=4, steps=2), None) == 8
    with pytest.raises(AttackRefused):
        images_in_update(blind, ONE, None)
    assert images_in_update(blind, TrainingSettings(batch_size=4, epochs=2), None, 5) == 12
    assert images_in_update(blind, TrainingSettings(batch_size=4, steps=2), None, 5) == 8
    assert images_in_update(three, TrainingSettings(batch_size=2), None, 5) == 6
    assert assumed_batches([2, 1], 4) == [[0, 1], [2], [0, 1], [2]]


def test_control_is_a_real_update_of_public_images() -> None:
    model = small_net()
    settings = TrainingSettings(batch_size=2, lr=0.02)
    arguments = (model, state_copy(model), patches()[:3], torch.tensor([0, 1, 2]), settings)
    update = control_update(*arguments, 5, seed=1)
    assert Observation.from_update(model, state_copy(model), update).steps == 3
    assert torch.equal(update["fc.bias"], control_update(*arguments, 5, seed=1)["fc.bias"])
    assert not torch.equal(update["fc.bias"], control_update(*arguments, 5, seed=2)["fc.bias"])

    seen = {name: value for name, value in update.items() if "running_var" not in name}
    seen["body.1.running_mean"] = torch.zeros(16)
    alike = withhold_alike(update, seen)
    assert "body.1.running_mean" not in alike and "body.1.running_var" not in alike
    assert "body.4.running_mean" in alike and "fc.weight" in alike


@pytest.mark.parametrize("name", ["batchnorm", "features", "matching"])
def test_a_start_from_noise_knows_no_prior(one: Observation, name: str) -> None:
    def ends(prior: Tensor, start: str) -> Tensor:
        (result,) = run_portfolio(
            one,
            prior=prior,
            n_images=1,
            settings=ONE,
            attacks=[AttackSpec(name, start=start)],
            budget=Budget(3),
            seed=0,
            labels=LABEL,
        )
        assert result.knowledge["prior"] == ("given" if start == "prior" else "lacked")
        assert result.images is not None
        return result.images

    dark = torch.zeros_like(public_mean())
    assert torch.equal(ends(public_mean(), "random"), ends(dark, "random"))
    assert not torch.equal(ends(public_mean(), "prior"), ends(dark, "prior"))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"name": "magic"}, ValueError, "unknown attack 'magic'; known are analytic, batchnorm"),
        ({"name": "matching", "speed": 1}, ValueError, r"no options \['speed'\]"),
        ({"name": "matching", "lr": "fast"}, TypeError, "matching.lr must be a number"),
        ({"name": "matching", "max_images": 1.5}, TypeError, "max_images"),
        ({"name": "matching", "start": "zero"}, ValueError, "start must be"),
        ({"name": "batchnorm", "start": "zero"}, ValueError, "start must be"),
        (
            {"name": "features", "start": "random", "learned_prior": 0.3},
            ValueError,
            "start must be 'prior' with a learned prior",
        ),
        ({"name": "matching", "polish": 1.0}, ValueError, "polish"),
        ({"name": "matching", "distance": "l2"}, ValueError, "distance must be"),
        ({"name": "matching", "restarts": 0}, ValueError, "matching.restarts"),
        ({"name": "features", "tv_weight": -1}, ValueError, "tv_weight"),
    ],
)
def test_bad_specifications(spec: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AttackSpec.check_all([spec])


def test_specifications_by_name() -> None:
    specs = AttackSpec.check_all([{"name": "matching", "lr": 1}, {"name": "batchnorm"}])
    assert [spec.name for spec in specs] == ["matching", "batchnorm"]
    for wrong in ([{"name": "matching"}, {"name": "matching"}], []):
        with pytest.raises(ValueError, match="at least one, and each may be named once"):
            AttackSpec.check_all(wrong)
    for shape in ("matching", {"name": "matching"}, ["matching"], None):
        with pytest.raises(ValueError, match="must be a list of objects"):
            AttackSpec.check_all(shape)  # type: ignore[arg-type]


def test_knowledge_takes_three_words() -> None:
    with pytest.raises(ValueError, match="labels must be one of"):
        Knowledge("guessed", "given", "given", "given", "given", "given")  # type: ignore[arg-type]
