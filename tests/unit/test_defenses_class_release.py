"""The class release: what it may tell about a patient, audited, and what it is good for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gradward.data import DataError, ImageSet
from gradward.defenses import class_statistics
from gradward.defenses.class_draws import ClassRelease, ReleaseSettings
from gradward.defenses.class_features import FeatureSettings, PublicFeatures, fit_features
from gradward.defenses.class_pictures import Movement, mixed, moved_at_random
from gradward.defenses.class_release import release
from gradward.defenses.class_statistics import (
    SiteStatistics,
    corrected,
    fit_public,
    noised,
    patient_sum,
)
from gradward.defenses.gaussian_mechanism import gaussian_delta
from gradward.defenses.ledger import BudgetExceeded, PrivacyLedger
from gradward.defenses.noise import FrozenNoise
from gradward.defenses.views import ClassDraws
from gradward.metrics import empirical_epsilon
from gradward.training import TrainingSettings, train_locally

CLASSES = 3
CLIP = 0.5
STILL = Movement(0.0, 0.0, 0.0, 0.0)
SETTINGS = ReleaseSettings(
    clip=CLIP,
    copies=1,
    movement=Movement(5.0, 0.05, 0.03, 0.05),
    features=FeatureSettings(networks=1, steps=40, filters=8, dimensions=24, augmentations=300),
)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stripes(count: int, seed: int, patients: tuple[str, ...] | None = None) -> ImageSet:
    """Stripes of three directions, hard to tell under the noise."""
    generator = gen(seed)
    labels = torch.arange(count) % CLASSES
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    phase = 6.3 * torch.rand(count, 1, 1, generator=generator)
    waves = torch.stack([rows, columns, rows + columns])[labels]
    pictures = 0.5 + 0.15 * torch.sin(0.8 * waves + phase)
    pictures = pictures + 0.25 * torch.randn(count, 16, 16, generator=generator)
    return ImageSet(pictures.clamp(0, 1)[:, None].float(), labels, patients)


PUBLIC = stripes(60, seed=1)
SITE = stripes(120, seed=2)


@pytest.fixture(scope="module")
def features() -> PublicFeatures:
    return fit_features(PUBLIC, CLASSES, SETTINGS.features, SETTINGS.movement, gen())


def make(
    features: PublicFeatures,
    *,
    site: ImageSet = SITE,
    epsilon: float = 8.0,
    seed: int = 3,
    secret: bytes = b"s" * 32,
    settings: ReleaseSettings = SETTINGS,
) -> ClassRelease:
    return release(
        site,
        PUBLIC,
        num_classes=CLASSES,
        epsilon=epsilon,
        delta=1e-5,
        generator=gen(seed),
        noise=FrozenNoise(secret),
        settings=settings,
        features=features,
    )


def summed(features: PublicFeatures, site: ImageSet) -> Tensor:
    public = fit_public(features(PUBLIC.images), PUBLIC.labels, CLASSES, 1e-3)
    return patient_sum(
        site,
        features,
        public,
        movement=SETTINGS.movement,
        copies=2,
        clip=CLIP,
        generator=gen(4),
    )


# What one patient can change ----------------------------------------------------------------------


def with_one_odd_patient() -> ImageSet:
    """Thirty images of one patient, all of them with the label that surprises most."""
    odd = stripes(90, seed=5)
    odd = ImageSet(odd.images, (odd.labels + 1) % CLASSES)
    images = torch.cat([SITE.images, odd.images[:30]])
    labels = torch.cat([SITE.labels, odd.labels[:30]])
    return ImageSet(images, labels, (*map(str, range(len(SITE))), *(30 * ["odd"])))


def influence(features: PublicFeatures) -> float:
    """L2 norm by which the odd patient changes the sum."""
    everyone = with_one_odd_patient()
    others = everyone.subset(range(len(SITE)))
    return float((summed(features, everyone) - summed(features, others)).norm())


def test_a_patient_changes_the_sum_by_the_clip_at_most_and_can_use_all_of_it(
    features: PublicFeatures,
) -> None:
    assert 0.999 * CLIP < influence(features) <= CLIP * (1 + 1e-6)


def test_without_clipping_the_bound_is_broken(
    features: PublicFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_statistics, "_clipped", lambda records, clip: records)
    assert influence(features) > 3 * CLIP


def test_clipping_image_by_image_would_break_it_too(features: PublicFeatures) -> None:
    everyone = with_one_odd_patient()
    separate = ImageSet(everyone.images, everyone.labels)
    others = separate.subset(range(len(SITE)))
    assert (summed(features, separate) - summed(features, others)).norm() > 3 * CLIP


def test_the_first_patient_leaves_the_records_of_the_others_alone(
    features: PublicFeatures,
) -> None:
    rest = SITE.subset(range(1, len(SITE)))
    assert (summed(features, SITE) - summed(features, rest)).norm() <= CLIP * (1 + 1e-6)


def test_without_patients_each_image_is_one(features: PublicFeatures) -> None:
    named = ImageSet(SITE.images, SITE.labels, tuple(map(str, range(len(SITE)))))
    assert torch.equal(summed(features, SITE), summed(features, named))


# The noise ----------------------------------------------------------------------------------------


def told(total: Tensor, epsilon: float, runs: int) -> Tensor:
    """Releases of one sum under ``runs`` secrets: (runs, slope entries and the count)."""
    values = []
    for run in range(runs):
        noise = FrozenNoise(run.to_bytes(32, "big"))
        found = noised(
            total, 2, epsilon=epsilon, delta=1e-2, clip=1.0, noise=noise, context="audit"
        )
        values.append([*found.slope.flatten().tolist(), found.count * 0.1])
    return torch.tensor(values)


def audited(epsilon: float, runs: int = 2500) -> tuple[float, float]:
    """Empirical epsilon of the slope, and of the count, when one patient puts all into either."""
    without = torch.tensor([0.0, 0.0, 50.0], dtype=torch.float64)
    in_slope = without + torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    in_count = without + torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    out = told(without, epsilon, runs)
    return (
        empirical_epsilon(told(in_slope, epsilon, runs)[:, 0], out[:, 0], 1e-2),
        empirical_epsilon(told(in_count, epsilon, runs)[:, 2], out[:, 2], 1e-2),
    )


def test_the_worst_case_shows_at_least_half_of_epsilon_and_never_more() -> None:
    for shown in audited(2.0, runs=4000):
        assert 1.0 < shown <= 2.0


def test_a_part_without_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = FrozenNoise.normal

    def silent_count(self: FrozenNoise, context: str, image: Tensor, shape: Tensor) -> Tensor:
        drawn = honest(self, context, image, shape)
        drawn[-1] = 0
        return drawn

    monkeypatch.setattr(FrozenNoise, "normal", silent_count)
    slope, count = audited(2.0)
    assert slope <= 2.0 < count


def test_half_the_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = class_statistics.gaussian_sigma
    monkeypatch.setattr(class_statistics, "gaussian_sigma", lambda *args: honest(*args) / 2)
    assert min(audited(2.0)) > 2.0


def test_the_noise_is_what_the_certificate_says(features: PublicFeatures) -> None:
    found = make(features, epsilon=3.0)
    assert gaussian_delta(found.sigma, found.epsilon, found.sensitivity) <= found.delta
    assert (found.epsilon, found.delta, found.sensitivity) == (3.0, 1e-5, CLIP)
    total = summed(features, SITE)
    differences = torch.cat(
        [
            noised(
                total,
                CLASSES,
                epsilon=3.0,
                delta=1e-5,
                clip=CLIP,
                noise=FrozenNoise(bytes([run]) * 32),
                context="",
            ).slope.flatten()
            - total[:-1]
            for run in range(40)
        ]
    )
    assert differences.std() == pytest.approx(found.sigma, rel=0.05)


def test_two_sums_never_share_noise() -> None:
    """Noise that two releases share would cancel in their difference."""
    noise = FrozenNoise(b"n" * 32)
    first, second = (
        noised(
            torch.tensor([value, 0.0, 5.0]).double(),
            2,
            epsilon=1.0,
            delta=1e-5,
            clip=1.0,
            noise=noise,
            context="",
        ).slope.flatten()
        for value in (0.0, 1e-6)
    )
    assert (first - second).abs().min() > 1e-3


def test_a_second_release_is_refused_past_the_budget(
    features: PublicFeatures, tmp_path: Path
) -> None:
    ledger = PrivacyLedger(tmp_path / "ledger.sqlite", max_epsilon=8.0, max_delta=1e-5)
    first = make(features)
    for again in (first, make(features), ClassRelease.from_state(first.to_state())):
        ledger.register_release(again.release_id, again.epsilon, again.delta)
    other = make(features, seed=99)
    with pytest.raises(BudgetExceeded):
        ledger.register_release(other.release_id, other.epsilon, other.delta)


# Determinism and state ----------------------------------------------------------------------------


def test_the_same_data_and_generator_give_the_same_release_under_one_secret_alone(
    features: PublicFeatures,
) -> None:
    first, again, elsewhere = make(features), make(features), make(features, secret=b"t" * 32)
    assert first.release_id == again.release_id != elsewhere.release_id
    torch.testing.assert_close(
        first.draw(torch.zeros(9), gen(5)), again.draw(torch.ones(9), gen(5))
    )


def test_draws_look_at_the_number_of_labels_alone(features: PublicFeatures) -> None:
    found = make(features)
    images, labels = found.draw(torch.zeros(300, dtype=torch.int64), gen(6))
    other = found.draw(torch.full((300,), 2), gen(6))
    assert torch.equal(images, other[0]) and torch.equal(labels, other[1])
    assert images.shape == (300, 1, 16, 16) and images.min() >= 0 and images.max() <= 1
    torch.testing.assert_close(labels.sum(1), torch.ones(300))
    assert (labels.argmax(1).bincount(minlength=CLASSES) > 50).all()


def test_state_comes_back_from_disk_and_a_changed_one_is_refused(
    features: PublicFeatures, tmp_path: Path
) -> None:
    found = make(features)
    torch.save(found.to_state(), tmp_path / "release.pt")
    state = torch.load(tmp_path / "release.pt", weights_only=True)
    back = ClassRelease.from_state(state)
    assert back.certificate == found.certificate and back.settings == found.settings
    for ours, theirs in zip(
        found.draw(torch.zeros(20), gen(7)), back.draw(torch.zeros(20), gen(7)), strict=True
    ):
        assert torch.equal(ours, theirs)
    state["certificate"]["epsilon"] = 0.1
    with pytest.raises(ValueError, match="stored"):
        ClassRelease.from_state(state)


# What it is good for ------------------------------------------------------------------------------


def accuracy(found: ClassRelease) -> float:
    held_out = stripes(900, seed=8)
    return float((found.scores(held_out.images).argmax(1) == held_out.labels).float().mean())


def test_a_site_teaches_what_its_budget_allows(features: PublicFeatures) -> None:
    many = stripes(900, seed=9)
    free, tight, none = (
        accuracy(make(features, site=many, epsilon=epsilon)) for epsilon in (1e4, 8.0, 1e-3)
    )
    assert free > none + 0.03
    assert tight > none + 0.01
    assert none > 1 / CLASSES + 0.1, "without a budget it is still as good as the public images"


def test_a_site_that_is_lost_in_the_noise_leaves_the_public_classifier_as_it_is() -> None:
    """A step divided by a count of almost nothing would throw it anywhere."""
    x = torch.nn.functional.normalize(torch.randn(400, 40, generator=gen(1)), dim=1)
    public = fit_public(x, torch.arange(400) % 2, 2, 1e-3)
    slope = 500 * torch.randn(40, 2, generator=gen(2))
    steps = [
        float(
            (corrected(public, SiteStatistics(slope, count, 1.0, 100 / 3)) - public.weights).norm()
        )
        for count in (-80.0, 20.0, 100.0, 101.0, 150.0)
    ]
    assert steps[:3] == [0, 0, 0]
    shrunk = (1 - (100 / 101) ** 2) / 101, (1 - (100 / 150) ** 2) / 150
    assert steps[3] / steps[4] == pytest.approx(shrunk[0] / shrunk[1], rel=1e-3)


def test_pure_noise_moves_nothing() -> None:
    """The step shrinks to almost nothing where the slope holds no more than its noise."""
    x = torch.nn.functional.normalize(torch.randn(400, 40, generator=gen(1)), dim=1)
    public = fit_public(x, torch.arange(400) % 2, 2, 1e-3)
    noise = 5.0 * torch.randn(40, 2, generator=gen(2))
    step = (corrected(public, SiteStatistics(noise, 100.0, 5.0, 1.0)) - public.weights).norm()
    full = (corrected(public, SiteStatistics(noise, 100.0, 1e-9, 1.0)) - public.weights).norm()
    assert step < 0.5 * full


def test_the_full_step_is_the_least_squares_of_the_site() -> None:
    """Where the site's features have the public moment, one Newton step is the solution."""
    x = torch.nn.functional.normalize(torch.randn(300, 6, generator=gen(1)), dim=1)
    public = fit_public(x, torch.randint(3, (300,), generator=gen(2)), 3, 1e-9)
    labels = torch.randint(3, (300,), generator=gen(3))
    targets = torch.nn.functional.one_hot(labels, 3) - 1 / 3
    slope = x.T @ (targets - x @ public.weights)
    expected = torch.linalg.lstsq(x.double(), targets.double()).solution.float()
    found = corrected(public, SiteStatistics(slope, 300.0, 1e-9, 1e-9))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_training_takes_the_draws_with_their_soft_labels(features: PublicFeatures) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, CLASSES))
    source = ClassDraws(make(features), SITE.labels, gen(10))
    run = train_locally(
        model, source, TrainingSettings(batch_size=30), gen(11), perturbed_only=True
    )
    assert run.perturbed_samples == len(SITE) and run.raw_samples == 0


# Pictures -----------------------------------------------------------------------------------------


def test_pictures_that_are_not_moved_nor_mixed_stay_as_they_are() -> None:
    torch.testing.assert_close(moved_at_random(SITE.images, STILL, gen()), SITE.images)
    assert torch.equal(mixed(SITE.images, 0.0, gen()), SITE.images)


def test_a_shift_moves_by_the_share_that_it_says() -> None:
    image = torch.zeros(400, 1, 20, 20)
    image[:, :, 10, 10] = 1
    pictures = moved_at_random(image, Movement(0, 0, 0.2, 0), gen())
    places = pictures.flatten(2).argmax(2)[:, 0]
    rows, columns = places // 20 - 10, places % 20 - 10
    assert rows.abs().max() == columns.abs().max() == 4


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (ReleaseSettings, {"clip": 0.0}),
        (ReleaseSettings, {"mixing": 1.5}),
        (ReleaseSettings, {"copies": -1}),
        (Movement, {"shift": 0.9}),
    ],
)
def test_bad_settings_are_told(kind: type, values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        kind(**values)


def test_data_that_do_not_fit_are_told(features: PublicFeatures) -> None:
    with pytest.raises(DataError, match="no site images"):
        make(features, site=SITE.subset([]))
    with pytest.raises(DataError, match="do not fit"):
        make(features, site=ImageSet(torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(DataError, match="label"):
        make(features, site=ImageSet(SITE.images, SITE.labels + 1))
