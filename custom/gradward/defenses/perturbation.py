"""A site's perturbation: what is trained on instead of its images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gradward.data.images import ImageSet
from gradward.defenses.admission import fit_and_admit
from gradward.defenses.autoencoder import Progress, no_progress
from gradward.defenses.channel import GatedChannel
from gradward.defenses.class_draws import ClassRelease
from gradward.defenses.ledger import PrivacyLedger
from gradward.defenses.noise import FrozenNoise
from gradward.defenses.perturbation_settings import GATED_MODES, PerturbationSettings
from gradward.defenses.storage import StorageError, load_private, save_private
from gradward.defenses.view_store import ViewStore
from gradward.defenses.views import ClassDraws, ClassModel, ViewDraws
from gradward.training import BatchSource

FILE = "perturber.pt"
VIEWS_FILE = "views.pt"
# The name that the noise gives it tells one secret from another, and nothing else.
_SECRET_PROBE = torch.zeros(1)


class SitePerturber:
    """Turns a site's images into what its model may see; build it with :meth:`fit`.

    Gated modes draw from one frozen view of each image, entered in the ledger before; the class
    modes from statistics alone.

    Attributes:
        settings: it was fitted by.
        mode: the one asked for, or ``class`` after a refusal.
        report: figures of fit, acceptance and use, as plain values: ``membership``,
            ``fit_seconds`` by part, ``clipped`` (fraction of the images), ``acceptance``.
    """

    def __init__(
        self,
        settings: PerturbationSettings,
        work: GatedChannel | ClassRelease,
        *,
        mode: str,
        report: Mapping[str, Any],
        noise: FrozenNoise,
        ledger: PrivacyLedger,
    ) -> None:
        self.settings, self.mode = settings, mode
        self.report: dict[str, Any] = dict(report)
        self._work, self._noise, self._ledger = work, noise, ledger
        self._store: ViewStore | None = None
        if isinstance(work, ClassRelease):
            self._name = work.release_id[:16]
        else:
            self._name = work.fingerprint()
            if mode in GATED_MODES:
                self._store = ViewStore(self._name, work, noise, ledger)
        self._folder: Path | None = None

    @classmethod
    def fit(
        cls,
        settings: PerturbationSettings,
        site_images: ImageSet,
        public: ImageSet,
        *,
        num_classes: int,
        noise: FrozenNoise,
        ledger: PrivacyLedger,
        generator: torch.Generator,
        progress: Progress = no_progress,
        deadline: float | None = None,
        cache: Path | None = None,
    ) -> SitePerturber:
        """Fit a perturber and let a fresh attacker judge it.

        Args:
            settings: mode and rate, or epsilon.
            site_images: the site's training images.
            public: declared public images of the same task; none of them may be the site's.
            num_classes: of the task.
            noise: keyed by the site's secret.
            ledger: of the site, over all jobs.
            generator: weights, batches and judging; never the noise of a view or a release.
            progress: told the part's name and the share done.
            deadline: seconds that the fit may take, about; it then cannot be reproduced. The
                certified mode keeps none.
            cache: private folder in which an interrupted fit goes on.

        Raises:
            TooFewImages: a class has too few images for statistics of its own.
            DataError: shapes differ, or too few candidates to judge the perturber by.
            PerturbationRefused: the attacker got more than the limits allow.
        """
        admitted = fit_and_admit(
            settings,
            site_images,
            public,
            num_classes=num_classes,
            noise=noise,
            generator=generator,
            progress=progress,
            seconds=deadline,
            cache=cache,
        )
        return cls(
            settings,
            admitted.work,
            mode=admitted.mode,
            report=admitted.report,
            noise=noise,
            ledger=ledger,
        )

    @property
    def version(self) -> str:
        """Name of what was fitted, and of how often it was degraded since."""
        level = len(self._store.degradations) if self._store else 0
        return self._name + (f"-{level}" if level else "")

    @property
    def rate(self) -> float:
        """Nats that a view tells of its image at most; 0 where there are only draws."""
        return self._store.channel.rate if self._store else 0.0

    @property
    def certificate(self) -> tuple[float, float] | None:
        """Epsilon and delta for each patient, in the certified mode."""
        work = self._work
        return (work.epsilon, work.delta) if isinstance(work, ClassRelease) else None

    def views(self, images: ImageSet, generator: torch.Generator) -> BatchSource:
        """Return what may be trained on instead of ``images``, position by position.

        Args:
            images: of the site.
            generator: of the draws; never of the noise of a view.

        Raises:
            BudgetExceeded: a view would be one too many of its image, or the release one too many
                of the site; nothing was handed out.
            LedgerError: the ledger cannot be used.
        """
        if self._store is None:
            return ClassDraws(self._class_model(), images.labels, generator)
        views, self.report["clipped"] = self._store.views(images)
        self._keep_views()
        return ViewDraws(self._store.channel, views, images.labels, generator)

    def strengthen(self, c: float) -> float:
        """Degrade all views, those handed out and those to come: ``c w' + sqrt(1 - c^2) eps``.

        There is no way back: a view less degraded beside the one handed out would be a second one.

        Args:
            c: how much of a view stays, in [0, 1).

        Returns:
            The rate from now on, nats.

        Raises:
            ValueError: ``c`` is out of range, or the mode hands out no views.
        """
        if self._store is None:
            raise ValueError(f"mode {self.mode!r} hands out no view that could be degraded")
        if not 0 <= c < 1:
            raise ValueError(f"c must lie in [0, 1), got {c}")
        self._store.degradations.append(float(c))
        self._keep_views()
        return self.rate

    def save(self, folder: Path) -> None:
        """Keep the perturber in ``folder``; from now on its views are kept there as well.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._keep_views()
        save_private(
            folder / FILE,
            {
                "settings": asdict(self.settings),
                "mode": self.mode,
                "work": self._work.to_state(),
                "report": json.dumps(self.report),
                "name": self._name,
                "secret": self._noise.key(_SECRET_PROBE),
            },
        )

    @classmethod
    def load(cls, folder: Path, *, noise: FrozenNoise, ledger: PrivacyLedger) -> SitePerturber:
        """Read what :meth:`save` kept.

        Raises:
            OSError: there is none, or its views are missing.
            StorageError: it is damaged, or was fitted under another secret, whose noise is lost:
                views made now would be second ones that no ledger recognises.
        """
        state = load_private(folder / FILE)
        try:
            settings = PerturbationSettings.from_dict(state["settings"])
            restored = ClassRelease if state["mode"] == "dp-class" else GatedChannel
            perturber = cls(
                settings,
                restored.from_state(state["work"]),
                mode=state["mode"],
                report=json.loads(state["report"]),
                noise=noise,
                ledger=ledger,
            )
            sound = perturber._name == state["name"]
            own = noise.key(_SECRET_PROBE) == state["secret"]
        except (KeyError, RuntimeError, TypeError, ValueError):
            raise StorageError(
                "the stored perturber is damaged; restore it from a backup"
            ) from None
        if not sound:
            raise StorageError(
                "the stored perturber is not the one that was fitted; restore it from a backup"
            )
        if not own:
            raise StorageError(
                "the stored perturber belongs to another secret; restore both from one backup"
            )
        if perturber._store is not None:
            perturber._store.restore(load_private(folder / VIEWS_FILE))
        perturber._folder = folder
        return perturber

    def _class_model(self) -> ClassModel:
        if not isinstance(self._work, ClassRelease):
            return self._work.latent
        work = self._work
        self._ledger.register_release(work.release_id, work.epsilon, work.delta)
        return work

    def _keep_views(self) -> None:
        if self._folder is not None and self._store is not None:
            save_private(self._folder / VIEWS_FILE, self._store.to_state())
