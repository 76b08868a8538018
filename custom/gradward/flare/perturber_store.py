"""Where a site keeps its perturbers, and with which books they are opened."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from gradward.data import ImageSet
from gradward.defenses.autoencoder import Progress
from gradward.defenses.ledger import LedgerError, PrivacyLedger
from gradward.defenses.noise import SECRET_FILE, FrozenNoise, SecretError, load_secret
from gradward.defenses.perturbation import FILE, SitePerturber
from gradward.defenses.perturbation_settings import PerturbationSettings
from gradward.flare.experiment import Experiment
from gradward.flare.ledger import LEDGER_FILE, open_ledger
from gradward.flare.seeds import generator_for
from gradward.flare.site import Site

PERTURBERS = "perturbers"


class PerturberStore:
    """The perturbers below a site's private root; later jobs find those of earlier ones.

    Args:
        site: whose private root, limits and secret are used.
        experiment: names the images.
        shared_books: one ledger for all perturbers, which see the same images; False keeps one for
            each, where they see public images only.
    """

    def __init__(self, site: Site, experiment: Experiment, shared_books: bool = True) -> None:
        self._site = site
        self._experiment = experiment
        self._shared_books = shared_books

    def require_books(self) -> None:
        """Stop where perturbers were handed out from but secret or ledger are gone.

        New ones would know no image again, and every image would get a second view.

        Raises:
            SecretError, LedgerError: which of them is gone.
        """
        private = self._site.private
        if not any((private / PERTURBERS).glob(f"*/{FILE}")):
            return
        if not (private / SECRET_FILE).exists():
            raise SecretError(
                "this site has perturbers but its secret is gone; restore it from a backup"
            )
        if not (private / LEDGER_FILE).exists():
            raise LedgerError(
                "this site has perturbers but its privacy ledger is gone; restore it from a backup"
            )

    def load(self, settings: PerturbationSettings) -> SitePerturber | None:
        """Return the perturber that was fitted by these settings; None without one.

        Raises:
            StorageError, SecretError, LedgerError, OSError: it is there and cannot be used.
        """
        folder = self._folder(settings)
        if not (folder / FILE).is_file():
            return None
        noise = FrozenNoise(load_secret(self._site.private))
        return SitePerturber.load(folder, noise=noise, ledger=self._ledger(folder))

    def fit(
        self,
        settings: PerturbationSettings,
        images: ImageSet,
        progress: Progress,
        seconds: float | None,
    ) -> SitePerturber:
        """Fit a perturber and keep it.

        Args:
            settings: of the perturber.
            images: that it will perturb.
            progress: told how far the fit is.
            seconds: after so many it is cut short; None for no limit.

        Raises:
            DataError, SiteSettingsError: the public images cannot be had.
            Exception: as :meth:`SitePerturber.fit`.
        """
        folder = self._folder(settings)
        perturber = SitePerturber.fit(
            settings,
            images,
            self._experiment.load_public(self._site).part("fit"),
            num_classes=self._experiment.num_classes,
            noise=FrozenNoise(load_secret(self._site.private)),
            ledger=self._ledger(folder),
            # The same in every job: another perturber would make second views of the images.
            generator=generator_for(0, "perturber", self._site.name),
            progress=progress,
            deadline=seconds,
            cache=folder,
        )
        perturber.save(folder)
        return perturber

    def _ledger(self, folder: Path) -> PrivacyLedger:
        return open_ledger(self._site, None if self._shared_books else folder)

    def _folder(self, settings: PerturbationSettings) -> Path:
        """Return the place of what these settings give, a job's model and seed left aside."""
        experiment = self._experiment
        parts = {
            **asdict(settings),
            "dataset": experiment.dataset,
            "public_set": experiment.public_set,
            "image_size": experiment.image_size,
            "channels": experiment.channels,
            "num_classes": experiment.num_classes,
        }
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        return self._site.private / PERTURBERS / key
