"""A site's perturbation: what is trained on instead of its images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gradward.data.images import DataError, ImageSet
from gradward.defenses.acceptance import PerturbationRefused
from gradward.defenses.autoencoder import Progress, no_progress
from gradward.defenses.channel import GatedChannel
from gradward.defenses.latent import ClassLatent
from gradward.defenses.ledger import PrivacyLedger
from gradward.defenses.noise import FrozenNoise
from gradward.defenses.perturbation_fit import (
    FittedChannel,
    divide_data,
    fit_channel,
    fit_fingerprint,
)
from gradward.defenses.perturbation_settings import PerturbationSettings
from gradward.defenses.storage import StorageError, load_private, save_private
from gradward.defenses.view_store import ViewStore
from gradward.defenses.views import ClassDraws, FrozenViews
from gradward.training import BatchSource

FILE = "perturber.pt"
VIEWS_FILE = "views.pt"
_CHUNK = 256
NOT_CERTIFIED = "not certified: the perturber was fitted on the site's images"
BY_RATE = "bounded by the rate: the perturber was fitted on public images"
COUNTS_ONLY = "nothing of the site but its class counts: all statistics are public"


class SitePerturber:
    """Turns a site's images into what its model may see; build it with :meth:`fit`.

    Gated modes hand out one frozen view of each image, entered in the ledger before; ``class``
    hands out fresh draws of the image's class.

    Attributes:
        mode: in which it works: the one asked for, or ``class`` after a refusal.
        report: figures of the fit, acceptance and use, as plain values; no class count, no pixel.
    """

    def __init__(
        self,
        settings: PerturbationSettings,
        channel: GatedChannel,
        *,
        mode: str,
        report: Mapping[str, Any],
        noise: FrozenNoise,
        ledger: PrivacyLedger,
    ) -> None:
        self.settings, self.mode = settings, mode
        self.report: dict[str, Any] = dict(report)
        self._channel, self._noise, self._ledger = channel, noise, ledger
        self._base_version = channel.fingerprint()
        self._store = ViewStore(self._base_version, channel, noise, ledger)
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
            settings: mode and rate.
            site_images: the site's training images.
            public: declared public images of the same task; none of them may be the site's.
            num_classes: of the task.
            noise: keyed by the site's secret.
            ledger: of the site, over all jobs.
            generator: weights, batches and judging; never the noise of a view.
            progress: told the part's name and the share done.
            deadline: seconds that the fit may take, about.
            cache: private folder in which an interrupted fit goes on.

        Raises:
            TooFewImages: a class has too few images for statistics of its own.
            DataError: shapes differ, or too few candidates to judge the perturber by.
            PerturbationRefused: the attacker got more than the limits allow.
        """
        if public.images.shape[1:] != site_images.images.shape[1:]:
            raise DataError(
                f"public images of shape {tuple(public.images.shape[1:])} do not fit site images "
                f"of shape {tuple(site_images.images.shape[1:])}"
            )
        if cache is not None:
            # Keyed: the name of a folder must not tell which images a site has.
            names = "".join(noise.key(part.images) for part in (site_images, public))
            names += "".join(noise.key(part.labels.float()) for part in (site_images, public))
            cache = cache / fit_fingerprint(settings, names, num_classes, generator)
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        fitted = fit_channel(
            settings,
            divide_data(settings, site_images, public),
            num_classes,
            generator,
            progress=progress,
            seconds=deadline,
            cache=cache,
        )
        mode, channel = _admit(settings, fitted)
        report = {
            **fitted.figures,
            "fitted_on": settings.fitted_on,
            "membership": _membership(settings, mode),
        }
        if fitted.acceptance is not None:
            report["acceptance"] = fitted.acceptance.figures()
        return cls(settings, channel, mode=mode, report=report, noise=noise, ledger=ledger)

    @property
    def version(self) -> str:
        """Name of what was fitted and of how often it was degraded since."""
        level = len(self._store.degradations)
        return self._base_version + (f"-{level}" if level else "")

    @property
    def rate(self) -> float:
        """Nats that a view tells of its image at most; 0 where there are only class draws."""
        return self._store.channel.rate

    def views(self, images: ImageSet, generator: torch.Generator | None = None) -> BatchSource:
        """Return what may be trained on instead of ``images``, position by position.

        Args:
            images: of the site.
            generator: of class draws, which need one; frozen views do not.

        Raises:
            BudgetExceeded: a view would be one too many of its image; none was handed out.
            LedgerError: the ledger cannot be used.
            ValueError: class draws without a generator.
        """
        if self.mode == "class":
            if generator is None:
                raise ValueError("class draws need a generator")
            return ClassDraws(self._channel.latent, images.labels, generator)
        views, self.report["clipped"] = self._store.views(images)
        if self._folder is not None:
            save_private(self._folder / VIEWS_FILE, self._store.to_state())
        with torch.no_grad():
            pictures = [
                self._channel.picture(view, label)
                for view, label in zip(
                    views.split(_CHUNK), images.labels.split(_CHUNK), strict=True
                )
            ]
        return FrozenViews(torch.cat(pictures), images.labels)

    def strengthen(self, c: float) -> float:
        """Degrade all views, those handed out and those to come: ``c w' + sqrt(1 - c^2) eps``.

        There is no way back: a stronger view beside a weaker one would be a second view.

        Args:
            c: how much of a view stays, in [0, 1).

        Returns:
            The rate from now on, nats.

        Raises:
            ValueError: ``c`` is out of range, or the mode hands out no views.
        """
        if self.mode == "class":
            raise ValueError("mode 'class' hands out no view that could be degraded")
        if not 0 <= c < 1:
            raise ValueError(f"c must lie in [0, 1), got {c}")
        self._store.degradations.append(float(c))
        if self._folder is not None:
            save_private(self._folder / VIEWS_FILE, self._store.to_state())
        return self.rate

    def save(self, folder: Path) -> None:
        """Keep the perturber in ``folder``; from now on its views are kept there as well.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        save_private(folder / VIEWS_FILE, self._store.to_state())
        save_private(
            folder / FILE,
            {
                "settings": asdict(self.settings),
                "mode": self.mode,
                "latent": self._channel.latent.to_state(),
                "gate": self._channel.gate,
                "report": json.dumps(self.report),
                "version": self._base_version,
                "secret": self._noise.key(self._channel.gate),
            },
        )
        self._folder = folder

    @classmethod
    def load(cls, folder: Path, *, noise: FrozenNoise, ledger: PrivacyLedger) -> SitePerturber:
        """Read what :meth:`save` kept.

        Raises:
            OSError: there is none.
            StorageError: it is damaged, or was fitted under another secret, whose noise is lost:
                the views would be second ones that no ledger recognises.
        """
        state = load_private(folder / FILE)
        try:
            channel = GatedChannel(ClassLatent.from_state(state["latent"]), state["gate"])
            perturber = cls(
                PerturbationSettings.from_dict(state["settings"]),
                channel,
                mode=state["mode"],
                report=json.loads(state["report"]),
                noise=noise,
                ledger=ledger,
            )
            sound = perturber._base_version == state["version"]
            own = noise.key(channel.gate) == state["secret"]
            perturber._store.restore(load_private(folder / VIEWS_FILE))
        except (KeyError, RuntimeError, TypeError, ValueError):
            raise StorageError("the stored perturber is damaged") from None
        if not sound:
            raise StorageError("the stored perturber is not the one that was fitted")
        if not own:
            raise StorageError("the stored perturber belongs to another secret")
        perturber._folder = folder
        return perturber


def _admit(settings: PerturbationSettings, fitted: FittedChannel) -> tuple[str, GatedChannel]:
    """Return the mode and channel that the acceptance gate lets through."""
    if fitted.acceptance is None:
        return settings.mode, fitted.channel
    try:
        fitted.acceptance.require(settings.limits)
    except PerturbationRefused:
        if settings.on_refusal != "class":
            raise
        closed = torch.zeros_like(fitted.channel.gate)
        return "class", GatedChannel(fitted.channel.latent, closed)
    return settings.mode, fitted.channel


def _membership(settings: PerturbationSettings, mode: str) -> str:
    if settings.fitted_on == "site":
        return NOT_CERTIFIED
    return COUNTS_ONLY if mode == "class" else BY_RATE
