"""The site's perturber in a federation: fitted once, kept at home, used by every job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

from gradward.data import ImageSet, PublicSet
from gradward.defenses.acceptance import PerturbationRefused
from gradward.defenses.latent import TooFewImages
from gradward.defenses.ledger import LedgerError
from gradward.defenses.noise import SecretError
from gradward.defenses.perturbation import SitePerturber
from gradward.defenses.perturbation_settings import PerturbationSettings
from gradward.defenses.storage import StorageError
from gradward.flare.analytics import stream_scalars
from gradward.flare.experiment import Experiment, JobError
from gradward.flare.perturber_report import FitProgress, streamed_figures
from gradward.flare.perturber_store import PerturberStore
from gradward.flare.seeds import secret_generator
from gradward.flare.site import Site
from gradward.report.perturbed_pictures import RememberedPictures

# What keeps a site from training and is told in one line, without anything of its data.
PERTURBATION_ERRORS = (PerturbationRefused, TooFewImages, LedgerError, SecretError, StorageError)


@dataclass(frozen=True)
class PerturbedImages:
    """What a site trains on in place of its images.

    Attributes:
        source: of the batches, position by position as the site's images; it remembers a few for
            the site's own page.
        mode: of the perturber.
        version: of the perturber.
        certificate: epsilon and delta for each patient, in the certified mode.
    """

    source: RememberedPictures
    mode: str
    version: str
    certificate: tuple[float, float] | None = None


class Perturbation(FLComponent):
    """Gives the trainer the site's perturber, by the job's settings within the site's limits.

    Autoencoder, gates, views, ledger and secret lie in the site's private root, outside the job's
    folders: a later job with the same settings and the same images finds the perturber there, and
    an interrupted fit goes on where it was. What the job cannot change are the limits in the site's
    ``local/gradward.json`` (:class:`~gradward.flare.policies.PerturbationPolicy`).
    """

    def __init__(
        self,
        settings: Mapping[str, Any] | None = None,
        per_site: Mapping[str, Mapping[str, Any] | None] | None = None,
        fit_seconds: float | None = None,
        analytics_sender_id: str = "analytics_sender",
    ) -> None:
        """Check every argument.

        Args:
            settings: fields of :class:`gradward.defenses.perturbation.PerturbationSettings` for
                all sites; None perturbs only where ``per_site`` says so.
            per_site: for a site's name, the fields that differ there, or None for no perturbation.
            fit_seconds: after so many, fitting stops where it is; a result cut short by it cannot
                be reproduced. None for no limit.
            analytics_sender_id: id of NVFlare's ``AnalyticsSender``.

        Raises:
            TypeError, ValueError: with the offending value.
        """
        super().__init__()
        if fit_seconds is not None and (
            isinstance(fit_seconds, bool)
            or not isinstance(fit_seconds, int | float)
            or fit_seconds <= 0
        ):
            raise ValueError(
                f"fit_seconds must be a positive number of seconds, got {fit_seconds!r}"
            )
        self.settings = None if settings is None else dict(settings)
        self.per_site = {
            site: None if values is None else dict(values)
            for site, values in (per_site or {}).items()
        }
        self.fit_seconds = fit_seconds
        self.analytics_sender_id = analytics_sender_id
        self._open: dict[str, SitePerturber] = {}
        self._twins: dict[str, SitePerturber] = {}
        if self.settings is not None:
            PerturbationSettings.from_dict(self.settings)
        for site in self.per_site:
            self.settings_for(site)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Forget the perturbers of an earlier run in the same process."""
        if event_type == EventType.START_RUN:
            self._open.clear()
            self._twins.clear()

    def settings_for(self, site: str) -> PerturbationSettings | None:
        """Return the settings of one site; None where the job perturbs nothing."""
        own = self.per_site.get(site, {})
        if own is None or (self.settings is None and site not in self.per_site):
            return None
        return PerturbationSettings.from_dict({**(self.settings or {}), **own})

    def open(
        self, site: Site, experiment: Experiment, images: ImageSet, fl_ctx: FLContext, number: int
    ) -> PerturbedImages | None:
        """Return what the site trains on in this round; None where it trains on raw images.

        Without a stored perturber one is fitted first, which takes minutes.

        Args:
            site: that trains.
            experiment: of the job.
            images: the site's training images.
            fl_ctx: of the training task.
            number: of the round, the step of what is streamed.

        Raises:
            JobError: the job asks for what the site's limits forbid.
            PERTURBATION_ERRORS: the perturber does not hide enough, or a budget is spent.
        """
        settings = self._allowed(site)
        if settings is None:
            return None
        if site.name not in self._open:
            store = PerturberStore(site, experiment)
            store.require_books()
            self._open[site.name] = self._opened(site, store, settings, images, fl_ctx)
        perturber = self._open[site.name]
        views = perturber.views(images, secret_generator())
        if not site.certified.required:
            # Figures of a fit depend on the data.
            stream_scalars(
                fl_ctx, self.analytics_sender_id, "defense", streamed_figures(perturber), number
            )
        return PerturbedImages(
            RememberedPictures(views), perturber.mode, perturber.version, perturber.certificate
        )

    def open_twin(
        self,
        twin: Site,
        experiment: Experiment,
        public: PublicSet,
        pinned: ImageSet,
        fl_ctx: FLContext,
    ) -> PerturbedImages | None:
        """Return what a canary update is trained on; None where the site trains on raw images.

        It is the work of a twin of the site's perturber: the same settings within the same limits,
        fitted on public images, with a secret and books of its own. The real one would give known
        pairs of image and view away.

        Args:
            twin: see :func:`gradward.flare.canary.canary_twin`.
            experiment: of the job.
            public: the declared public images.
            pinned: canaries of the site.
            fl_ctx: of the task.

        Raises:
            JobError, PERTURBATION_ERRORS: as :meth:`open`.
        """
        settings = self._allowed(twin)
        if settings is None:
            return None
        settings = replace(settings, fitted_on="public")
        if twin.name not in self._twins:
            store = PerturberStore(twin, experiment, shared_books=False)
            self._twins[twin.name] = self._opened(
                twin, store, settings, public.part("canary"), fl_ctx
            )
        perturber = self._twins[twin.name]
        views = perturber.views(pinned, secret_generator())
        return PerturbedImages(RememberedPictures(views), perturber.mode, perturber.version)

    def _allowed(self, site: Site) -> PerturbationSettings | None:
        """Return the settings for a site, None for raw images, if its limits allow them."""
        settings = self.settings_for(site.name)
        if settings is None:
            if site.perturbation.required:
                raise JobError(
                    "this site trains on perturbed images only, but the job has no perturbation "
                    "for it; give it one in 'settings' or 'per_site' of the Perturbation"
                )
            return None
        limit = site.perturbation.max_rate
        if settings.gated and limit is not None and settings.rate > limit:
            raise JobError(
                f"the job's perturbation tells {settings.rate:g} nats of an image; this site "
                f"allows {limit:g}; lower 'rate' in its settings"
            )
        return settings

    def strengthen(self, site: Site, factor: float) -> None:
        """Degrade the site's stored views for the rounds and jobs to come.

        Raises:
            JobError: the site has no perturber in this job.
        """
        if site.name not in self._open:
            raise JobError(
                "there is no perturber to strengthen; a gate with action 'strengthen' needs a "
                "perturbation"
            )
        self._open[site.name].strengthen(factor)

    def _opened(
        self,
        site: Site,
        store: PerturberStore,
        settings: PerturbationSettings,
        images: ImageSet,
        fl_ctx: FLContext,
    ) -> SitePerturber:
        if (stored := store.load(settings)) is not None:
            return stored
        with FitProgress(self, fl_ctx, settings.parts, site.private) as progress:
            perturber = store.fit(settings, images, progress, self.fit_seconds)
        self.log_info(
            fl_ctx, f"the perturber was fitted; membership: {perturber.report['membership']}"
        )
        return perturber
