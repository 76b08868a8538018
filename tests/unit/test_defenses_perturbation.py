"""A site's perturber: one view an image for ever, counted, only degraded, and kept."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gradward.data import DataError, ImageSet
from gradward.defenses import perturbation_fit
from gradward.defenses.acceptance import Acceptance, PerturbationRefused
from gradward.defenses.admission import CERTIFIED, COUNTS_ONLY, NOT_CERTIFIED
from gradward.defenses.channel import GatedChannel
from gradward.defenses.latent import TooFewImages
from gradward.defenses.ledger import BudgetExceeded, PrivacyLedger
from gradward.defenses.noise import FrozenNoise
from gradward.defenses.perturbation import FILE, VIEWS_FILE, SitePerturber
from gradward.defenses.perturbation_settings import PerturbationSettings
from gradward.defenses.rate import gate_rate, image_kl
from gradward.defenses.storage import StorageError, load_private, save_private
from gradward.defenses.view_store import ViewStore
from gradward.metrics.linkage import likelihood_linkage

from .perturbation_fixtures import SIDE, generator, small_latent, spots

SITE = spots(240, 1)
PUBLIC = spots(120, 11)
SECRET = b"s" * 32
OPEN = {
    "mode": "learned",
    "max_linkage": 1.0,
    "min_mse": 0.0,
    "autoencoder_steps": 60,
    "gate_steps": 5,
}


@pytest.fixture
def ledger(tmp_path: Path) -> PrivacyLedger:
    return PrivacyLedger(tmp_path / "ledger")


@pytest.fixture(autouse=True)
def _quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judging has a test file of its own; here its verdict is taken from the limits alone."""

    def judge(channel: GatedChannel, *_: object, limits: object, **__: object) -> Acceptance:
        accepted = limits.max_linkage == 1.0  # type: ignore[attr-defined]
        return Acceptance(0.5, 0.6, 100, 0.7, "wiener", 150, accepted)

    monkeypatch.setattr(perturbation_fit, "judge_channel", judge)


def gated(rate: float = 3.0) -> GatedChannel:
    latent = small_latent()
    settings = PerturbationSettings(mode="uniform", rate=rate)
    return GatedChannel(latent, perturbation_fit.uniform_gates(settings.rate, latent.dimensions))


def perturber(ledger: PrivacyLedger, rate: float = 3.0, secret: bytes = SECRET) -> SitePerturber:
    return SitePerturber(
        PerturbationSettings(mode="uniform", rate=rate),
        gated(rate),
        mode="uniform",
        report={},
        noise=FrozenNoise(secret),
        ledger=ledger,
    )


def fit(ledger: PrivacyLedger, site: ImageSet = SITE, **changed: object) -> SitePerturber:
    keys = {"cache", "seed", "deadline", "progress", "public", "num_classes"}
    own = {name: value for name, value in changed.items() if name in keys}
    values = OPEN | {name: value for name, value in changed.items() if name not in keys}
    seed = own.pop("seed", 0)
    public = own.pop("public", PUBLIC)
    return SitePerturber.fit(
        PerturbationSettings.from_dict(values),
        site,
        public,
        noise=FrozenNoise(SECRET),
        ledger=ledger,
        generator=generator(seed),
        **{"num_classes": 2} | own,
    )


def pictures(made: SitePerturber, images: ImageSet) -> Tensor:
    """What the frozen views look like; two are equal where the views are."""
    batch = made.views(images, generator(7)).batch(range(len(images)))
    assert batch.perturbed
    assert made._store is not None
    views, _ = made._store.views(images)
    with torch.no_grad():
        return made._store.channel.picture(views, images.labels)


# ---- one view


def test_epochs_copies_jobs_and_order_give_the_same_view(ledger: PrivacyLedger) -> None:
    made = perturber(ledger)
    first = pictures(made, SITE)
    for _ in range(10):
        torch.testing.assert_close(pictures(made, SITE), first, rtol=0, atol=0)
    renamed = ImageSet(SITE.images[5:6].clone(), SITE.labels[5:6], ("another name",))
    torch.testing.assert_close(pictures(made, renamed), first[5:6], rtol=0, atol=1e-6)
    later = perturber(ledger)
    torch.testing.assert_close(
        pictures(later, SITE.subset([7, 5])), first[[7, 5]], atol=1e-6, rtol=0
    )
    assert ledger.total().views == ledger.total().images == len(SITE)


def test_the_rate_is_in_the_ledger_before_a_view_is_out(ledger: PrivacyLedger) -> None:
    made = perturber(ledger, rate=3.0)
    pictures(made, SITE.subset([0, 1]))
    (view,) = ledger.views(FrozenNoise(SECRET).key(SITE.images[0]))
    assert view.rate == pytest.approx(made.rate) == pytest.approx(3.0, rel=0.02)
    assert made.rate <= 3.0, "a budget of exactly 3 nats must afford it"
    assert made.report["clipped"] in (0.0, 0.5, 1.0)


def test_another_perturber_is_a_second_view_and_refused(ledger: PrivacyLedger) -> None:
    pictures(perturber(ledger, rate=3.0), SITE)
    with pytest.raises(BudgetExceeded):
        perturber(ledger, rate=1.0).views(SITE, generator())
    fresh = spots(20, 30)
    pictures(perturber(ledger, rate=1.0), fresh)


def test_another_label_is_a_second_view_and_refused(ledger: PrivacyLedger) -> None:
    made = perturber(ledger)
    pictures(made, SITE)
    with pytest.raises(BudgetExceeded):
        made.views(ImageSet(SITE.images, 1 - SITE.labels), generator())


def test_a_ledger_that_does_not_count_is_what_refusal_hangs_on(tmp_path: Path) -> None:
    """Planted fault: with the ledger off, gates of 3 and 1 nats would be seen side by side."""

    class Careless(PrivacyLedger):
        def register_views(self, *_: object, **__: object) -> None:
            pass

    careless = Careless(tmp_path / "careless")
    one, other = (pictures(perturber(careless, rate), SITE) for rate in (3.0, 1.0))
    assert (one - other).abs().max() > 0.01
    assert careless.total().views == 0


def test_no_view_tells_more_than_the_rate_nor_does_asking_again(ledger: PrivacyLedger) -> None:
    channel = gated(3.0)
    store = ViewStore("v", channel, FrozenNoise(SECRET), ledger)
    w, _ = channel.whiten(SITE.images, SITE.labels)
    assert image_kl(channel.gate.double(), w.double()).max() <= channel.rate
    asked = torch.stack([store.views(SITE)[0] for _ in range(10)])
    frozen = asked.mean(0)
    torch.testing.assert_close(frozen, asked[0], atol=1e-6, rtol=0)
    draw = generator(3)
    fresh = torch.stack([channel.release_fresh(w, draw) for _ in range(10)])
    # Single draws differ by several images; the frozen one is no better than such a draw.
    single = torch.tensor([_linkage(channel, each, w) for each in fresh])
    assert single.min() - 0.1 <= _linkage(channel, frozen, w) <= single.max() + 0.05
    assert _linkage(channel, fresh.mean(0), w) > _linkage(channel, frozen, w) + 0.2, (
        "fresh noise each epoch is averaged away; the test must be able to see it"
    )


def test_ten_epochs_of_draws_link_no_better_than_the_one_view(ledger: PrivacyLedger) -> None:
    """What ten epochs show of an image, averaged as an attacker would, is less than its view."""
    channel = gated(3.0)
    w, _ = channel.whiten(SITE.images, SITE.labels)
    views, _ = ViewStore("v", channel, FrozenNoise(SECRET), ledger).views(SITE)
    draw = generator(3)
    epochs = torch.stack([channel.redraw(views, draw) for _ in range(10)])
    seen = epochs.mean(0) / channel.gate
    assert _linkage(channel, seen, w) <= _linkage(channel, views, w) + 0.02
    # In the limit the view itself comes out, and no more of the image than is in it.
    endless = torch.stack([channel.redraw(views, draw) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(endless / channel.gate, views, atol=0.5, rtol=0)
    one, other = epochs[0], epochs[1]
    assert (one - other).abs().mean() > 0.1, "a fresh picture each epoch"


def test_strengthening_twice_by_other_factors_is_another_view(ledger: PrivacyLedger) -> None:
    """The factor is in the view's name: the same noise under two factors would be two views."""
    stores = [ViewStore("v", gated(4.0), FrozenNoise(SECRET), ledger) for _ in range(2)]
    for store, c in zip(stores, (0.5, 0.8), strict=True):
        store.degradations.append(c)
    stores[0].views(SITE)
    with pytest.raises(BudgetExceeded):
        stores[1].views(SITE)


def _linkage(channel: GatedChannel, views: Tensor, w: Tensor) -> float:
    own = (SITE.labels == 0).nonzero().flatten()
    candidates = own.expand(len(own), -1)
    linked = likelihood_linkage(views[own], w, channel.gate, torch.arange(len(own)), candidates)
    return float(linked.mean())


# ---- degrading


def test_strengthening_degrades_what_was_handed_out(ledger: PrivacyLedger) -> None:
    channel = gated(4.0)
    store = ViewStore("v", channel, FrozenNoise(SECRET), ledger)
    before, _ = store.views(SITE)
    store.degradations.append(0.5)
    after, _ = store.views(SITE)
    assert store.channel.rate == pytest.approx(float(gate_rate(0.5 * channel.gate)))
    assert store.channel.rate < channel.rate
    added = (after - 0.5 * before) / 0.75**0.5
    assert float(added.std()) == pytest.approx(1, abs=0.03)
    w, _ = channel.whiten(SITE.images, SITE.labels)
    eps = (before - channel.gate * w) / (1 - channel.gate.square()).sqrt()
    assert abs(float((added * eps).mean())) < 0.03, "new noise, not that of the first view again"
    torch.testing.assert_close(store.views(SITE)[0], after, rtol=0, atol=0)
    assert ledger.total().rate == pytest.approx(channel.rate), "the child costs nothing"


def test_twice_degraded_views_and_late_comers_are_counted_once(ledger: PrivacyLedger) -> None:
    made = perturber(ledger, rate=4.0)
    early, late = SITE.subset(range(10)), SITE.subset(range(10, 20))
    pictures(made, early)
    made.strengthen(0.8)
    pictures(made, late)
    rates = [made.rate, made.strengthen(0.8)]
    assert rates[1] < rates[0] < 4.0
    assert made.version.endswith("-2")
    pictures(made, ImageSet(SITE.images[:20], SITE.labels[:20]))
    noise = FrozenNoise(SECRET)
    key = noise.key(late.images[0])
    roots = [view.rate for view in ledger.views(key) if view.parent is None]
    assert roots == [pytest.approx(rates[0])], "it never was seen undegraded"


@pytest.mark.parametrize("c", [1.0, 1.2, -0.1])
def test_there_is_no_way_back(ledger: PrivacyLedger, c: float) -> None:
    with pytest.raises(ValueError, match="c must lie in"):
        perturber(ledger).strengthen(c)


# ---- kept


def test_saved_and_loaded_it_is_the_same(ledger: PrivacyLedger, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    made = perturber(ledger)
    made.save(folder)
    first = pictures(made, SITE)
    made.strengthen(0.7)
    second = pictures(made, SITE)
    for file in (FILE, VIEWS_FILE):
        assert stat.S_IMODE((folder / file).stat().st_mode) == 0o600
    again = SitePerturber.load(folder, noise=FrozenNoise(SECRET), ledger=ledger)
    assert (again.version, again.rate, again.mode) == (made.version, made.rate, "uniform")
    torch.testing.assert_close(pictures(again, SITE), second, rtol=0, atol=0)
    assert (first - second).abs().max() > 0.01


def test_what_was_changed_on_disk_is_refused(ledger: PrivacyLedger, tmp_path: Path) -> None:
    made = perturber(ledger)
    made.save(tmp_path)
    noise = FrozenNoise(SECRET)
    with pytest.raises(StorageError, match="another secret"):
        SitePerturber.load(tmp_path, noise=FrozenNoise(b"t" * 32), ledger=ledger)
    whole = load_private(tmp_path / FILE)
    save_private(tmp_path / FILE, whole | {"work": whole["work"] | {"gate": gated(9.0).gate}})
    with pytest.raises(StorageError, match="not the one that was fitted"):
        SitePerturber.load(tmp_path, noise=noise, ledger=ledger)
    save_private(tmp_path / FILE, whole)
    save_private(tmp_path / VIEWS_FILE, {"version": "another"})
    with pytest.raises(StorageError, match="damaged"):
        SitePerturber.load(tmp_path, noise=noise, ledger=ledger)
    (tmp_path / FILE).write_bytes(b"no perturber")
    with pytest.raises(StorageError, match="damaged"):
        SitePerturber.load(tmp_path, noise=noise, ledger=ledger)


# ---- fitted


def test_the_same_fit_is_the_same_perturber_and_resumes(
    ledger: PrivacyLedger, tmp_path: Path
) -> None:
    whole = fit(ledger, cache=tmp_path / "one")

    class Interrupted(Exception):
        pass

    def interrupt(part: str, share: float) -> None:
        if part == "gates":
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(ledger, cache=tmp_path / "two", progress=interrupt)
    parts: list[str] = []
    resumed = fit(ledger, cache=tmp_path / "two", progress=lambda part, share: parts.append(part))
    assert "autoencoder" not in parts, "it was finished before"
    assert resumed.version == whole.version
    assert fit(ledger, seed=1).version != whole.version
    assert json.loads(json.dumps(whole.report)) == whole.report
    assert whole.report["membership"] == NOT_CERTIFIED
    assert whole.report["acceptance"]["linkage"] == 0.5


def test_another_sites_cache_is_not_taken(ledger: PrivacyLedger, tmp_path: Path) -> None:
    one = fit(ledger, mode="class", cache=tmp_path)
    other = fit(ledger, spots(240, 3), mode="class", cache=tmp_path)
    assert one.version != other.version


def test_a_refusal_stops_the_site_or_leaves_it_class_draws(ledger: PrivacyLedger) -> None:
    strict = {"mode": "uniform", "max_linkage": 0.1}
    with pytest.raises(PerturbationRefused):
        fit(ledger, **strict)
    made = fit(ledger, **strict, on_refusal="class")
    assert (made.mode, made.rate) == ("class", 0.0)
    assert made.report["acceptance"]["accepted"] is False
    made.views(SITE, generator())
    assert ledger.total().views == 0


def test_class_draws_are_fresh(ledger: PrivacyLedger) -> None:
    made = fit(ledger, mode="class")
    source = made.views(SITE, generator())
    one, other = source.batch([0, 1, 2]), source.batch([0, 1, 2])
    assert one.perturbed and torch.equal(one.labels, SITE.labels[:3])
    assert (one.images - other.images).abs().max() > 0.01
    with pytest.raises(ValueError, match="no view"):
        made.strengthen(0.5)


def test_a_site_of_one_image_works_with_public_statistics(ledger: PrivacyLedger) -> None:
    lone = SITE.subset([0])
    made = fit(ledger, lone, mode="uniform", fitted_on="public", rate=1.0)
    assert len(made.views(lone, generator())) == 1
    twin = fit(ledger, spots(1, 40), mode="class", fitted_on="public")
    other = fit(ledger, lone, mode="class", fitted_on="public")
    assert twin.version == other.version, "nothing of the site is in it"
    assert twin.report["membership"] == COUNTS_ONLY


def test_a_view_that_hides_the_class_is_the_same_under_every_label(ledger: PrivacyLedger) -> None:
    site, public = (
        ImageSet(part.images, part.labels + 2 * (torch.arange(len(part)) % 4 // 2))
        for part in (SITE, PUBLIC)
    )
    with pytest.raises(DataError, match="at least 4 classes"):
        fit(ledger, mode="class-hiding")
    made = fit(ledger, site, public=public, num_classes=4, mode="class-hiding")
    some = site.subset(range(8))
    first = pictures(made, some)
    relabelled = ImageSet(some.images, (some.labels + 1) % 4)
    torch.testing.assert_close(pictures(made, relabelled), first, atol=1e-6, rtol=0)
    assert ledger.total().views == ledger.total().images == 8


def test_few_images_of_a_class_cannot_be_fitted_on(ledger: PrivacyLedger) -> None:
    with pytest.raises(TooFewImages, match="at least 100"):
        fit(ledger, spots(199, 1))
    with pytest.raises(TooFewImages, match="at least 10"):
        fit(ledger, mode="class", fitted_on="public", public=PUBLIC.subset(range(15)))
    foreign = ImageSet(torch.zeros(4, 1, SIDE, SIDE + 1), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(DataError, match="do not fit"):
        fit(ledger, public=foreign)


def test_the_certified_mode_pays_once_for_all_draws(tmp_path: Path) -> None:
    ledger = PrivacyLedger(tmp_path / "ledger", max_epsilon=8.0, max_delta=1e-5)
    made = fit(ledger, mode="dp-class", epsilon=8.0, delta=1e-5)
    assert made.certificate == (8.0, 1e-5)
    assert made.report["membership"] == CERTIFIED
    for _ in range(3):
        batch = made.views(SITE, generator()).batch([0, 1])
    assert batch.perturbed and batch.images.shape == (2, 1, SIDE, SIDE)
    assert ledger.total().epsilon == 8.0
    made.save(tmp_path / "kept")
    again = SitePerturber.load(tmp_path / "kept", noise=FrozenNoise(SECRET), ledger=ledger)
    again.views(SITE, generator())
    assert again.version == made.version
    with pytest.raises(BudgetExceeded):
        fit(ledger, spots(240, 3), mode="dp-class", epsilon=8.0, delta=1e-5).views(
            SITE, generator()
        )


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"mode": "blur"}, ValueError),
        ({"rate": -1.0}, ValueError),
        ({"rate": "much"}, TypeError),
        ({"rate": 0.0, "mode": "uniform"}, ValueError),
        ({"max_linkage": 1.5}, ValueError),
        ({"fitted_on": "both"}, ValueError),
        ({"on_refusal": "shrug"}, ValueError),
        ({"epsilon": 1.0}, ValueError),
        ({"epsilon": None, "mode": "dp-class"}, TypeError),
        ({"fitted_on": "site", "mode": "dp-class", "epsilon": 1.0, "delta": 1e-5}, ValueError),
        ({"min_class_images": 0}, ValueError),
        ({"gate_steps": True}, TypeError),
        ({"nats": 3}, ValueError),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match=str(next(iter(values)))):
        PerturbationSettings.from_dict(values)


def test_default_sources() -> None:
    assert (PerturbationSettings().mode, PerturbationSettings().fitted_on) == ("class", "site")
    assert PerturbationSettings(mode="dp-class", epsilon=1.0, delta=1e-5).fitted_on == "public"
