"""Around a site's perturber, its secret and its books."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gradward.client import perturbed_images
from gradward.data import ImageSet
from gradward.defenses.class_release import release
from gradward.defenses.latent import require_enough
from gradward.defenses.ledger import PrivacyLedger
from gradward.defenses.noise import SECRET_FILE, FrozenNoise, load_secret
from gradward.defenses.perturbation_fit import divide_data, fit_channel
from gradward.defenses.perturbation_settings import PerturbationSettings
from gradward.defenses.privacy_account import PrivacyAccount, plan_round
from gradward.defenses.storage import load_private
from gradward.flare.perturber import Perturbation
from gradward.flare.perturber_store import PerturberStore
from gradward.flare.site import Site, open_site
from gradward.training import RawImages, TrainingSettings, train_locally
from gradward.training_settings import DpSgdSettings

from ..flare_desk import ACCEPTED, Desk, experiment
from . import mistake


def images(number: int = 8) -> ImageSet:
    return ImageSet(torch.rand(number, 3, 32, 32), torch.arange(number) % 2)


def site(folder: Path, **settings: Any) -> tuple[Desk, Site]:
    desk = Desk(folder, experiment())
    desk.settings(**settings)
    return desk, open_site(desk.task("train"))


@mistake("the perturber was refused")
def refused(folder: Path) -> None:
    limits = PerturbationSettings(mode="learned", rate=1.0).limits
    replace(ACCEPTED, accepted=False).require(limits)


@mistake("class statistics need at least")
def too_few(folder: Path) -> None:
    require_enough(torch.tensor([0, 1]), 2, 20, conditional=True)


@mistake("mode 'class-hiding' needs at least")
def few_classes(folder: Path) -> None:
    settings = PerturbationSettings(mode="class-hiding", rate=1.0)
    data = divide_data(settings, images(), images())
    generator = torch.Generator()
    fit_channel(settings, data, 2, generator, progress=lambda part, share: None)


@mistake("there are no … images; a release")
def no_images(folder: Path) -> None:
    noise, generator = FrozenNoise(bytes(32)), torch.Generator()
    empty = images().subset([])
    release(images(), empty, num_classes=2, epsilon=1, delta=1e-5, generator=generator, noise=noise)


@mistake("another view of …")
def second_view(folder: Path) -> None:
    ledger = PrivacyLedger(folder / "ledger.db", max_views=1)
    for view in ("first", "second"):
        ledger.register_view("image", view, 1.0)


@mistake("with this release the site would have spent")
def spent(folder: Path) -> None:
    ledger = PrivacyLedger(folder / "ledger.db", max_epsilon=1.0)
    ledger.register_release("first", 2.0, 1e-5)


@mistake("this site's privacy ledger is empty or no ledger")
def no_ledger(folder: Path) -> None:
    (folder / "ledger.db").touch()
    PrivacyLedger(folder / "ledger.db").register_view("image", "first", 1.0)


@mistake("this site has perturbers but its secret is gone")
def no_secret(folder: Path) -> None:
    desk, here = site(folder)
    file = here.private / "perturbers" / "one" / "perturber.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    PerturberStore(here, desk.job).require_books()


@mistake("this site has perturbers but its privacy ledger is gone")
def no_books(folder: Path) -> None:
    _, here = site(folder)
    load_secret(here.private)
    no_secret(folder)


@mistake("others may read this site's secret")
def open_secret(folder: Path) -> None:
    load_secret(folder)
    (folder / SECRET_FILE).chmod(0o644)
    load_secret(folder)


@mistake("this site's secret has")
def short_secret(folder: Path) -> None:
    load_secret(folder)
    (folder / SECRET_FILE).write_bytes(b"short")
    load_secret(folder)


@mistake("the private file … is damaged")
def damaged(folder: Path) -> None:
    (folder / "perturber.pt").write_bytes(b"?")
    load_private(folder / "perturber.pt")


@mistake("epsilon … is spent")
def epsilon_spent(folder: Path) -> None:
    private = DpSgdSettings(epsilon=1.0, rounds=1, delta=1e-3)
    settings = TrainingSettings(batch_size=4, lr=0.1, dp_sgd=private)
    account = PrivacyAccount.open(settings)
    for _ in range(2):
        account = account.spend(plan_round(settings, 8))


@mistake("this site trains on perturbed images only; give")
def raw(folder: Path) -> None:
    train_locally(
        experiment().build_model(),
        RawImages(images().images, images().labels),
        TrainingSettings(batch_size=4, lr=0.1),
        torch.Generator(),
        perturbed_only=True,
    )


@mistake("this site trains on perturbed images only, but the job has no perturbation")
def unperturbed(folder: Path) -> None:
    desk, here = site(folder, perturbation={"required": True})
    Perturbation().open(here, desk.job, images(), desk.task("train"), 0)


@mistake("the job's perturbation tells …")
def too_much(folder: Path) -> None:
    desk, here = site(folder, perturbation={"max_rate": 0.5})
    job = Perturbation({"mode": "learned", "rate": 2.0})
    job.open(here, desk.job, images(), desk.task("train"), 0)


@mistake("there is no perturber to strengthen")
def nothing_to_strengthen(folder: Path) -> None:
    _, here = site(folder)
    Perturbation().strengthen(here, 0.5)


@mistake("there are no perturbed images: call")
def no_hand_out(folder: Path) -> None:
    perturbed_images()
