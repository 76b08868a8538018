"""A site's canary update: its own training pipeline, fed with public images."""

from __future__ import annotations

from collections.abc import Callable

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from gradward.data import DataError, PublicSet
from gradward.flare.canary import PinnedImages, canary_twin, pinned_canaries
from gradward.flare.canary_protocol import CHECKSUM_HEADER
from gradward.flare.certificate import images_told
from gradward.flare.experiment import Experiment
from gradward.flare.local_round import LocalRound
from gradward.flare.perturber import Perturbation
from gradward.flare.results import canary_result
from gradward.flare.seeds import derive_seed, generator_for
from gradward.flare.site import Site
from gradward.randomness import own_randomness
from gradward.training import RawImages


def train_on_canaries(
    site: Site,
    experiment: Experiment,
    shareable: Shareable,
    fl_ctx: FLContext,
    *,
    public: PublicSet,
    n_images: int,
    perturbation: Perturbation | None,
    aborted: Callable[[], bool],
) -> Shareable:
    """Return the canary update of one round; the site's training is none the wiser.

    No patient's image is touched: nothing is streamed, nor entered in the accounts of DP-SGD and of
    the perturbation.

    Args:
        site: that was asked.
        experiment: of the job.
        shareable: the order, see :class:`~gradward.flare.canary_protocol.CanaryOrder`.
        fl_ctx: of the task.
        public: the declared public images as the site has them.
        n_images: how many training images the site has.
        perturbation: of the site's training; None if it trains on raw images.
        aborted: asked before every batch.

    Raises:
        DataError: server, site and job do not have the same public images.
        Exception: whatever the training itself can raise.
    """
    expected = experiment.public_checksum or public.checksum
    if not public.checksum == shareable.get_header(CHECKSUM_HEADER) == expected:
        raise DataError(
            f"the public images of {public.name!r} differ between server, site and job; install "
            "the same on all, or correct the job's 'public_checksum'"
        )
    twin = canary_twin(site)
    local = LocalRound.begin(twin, experiment, shareable, fl_ctx, n_images)
    if twin.certified.required:
        n_images = images_told(local.settings)
    purpose = ("canary", site.name, local.number)
    # Dropout draws from the process's own generators: the training must find them untouched, and
    # a canary the same ones whenever it is computed.
    with own_randomness(derive_seed(experiment.seed, *purpose, "layers"), site.device):
        pinned = pinned_canaries(public, experiment.seed, site.name)
        perturbed = None
        if perturbation is not None:
            perturbed = perturbation.open_twin(twin, experiment, public, pinned, fl_ctx)
        run = local.train(
            PinnedImages(
                RawImages(pinned.images, pinned.labels) if perturbed is None else perturbed.source,
                n_images,
            ),
            generator_for(experiment.seed, *purpose),
            aborted=aborted,
            perturbed_only=perturbed is not None,
        )
    return canary_result(fl_ctx, local, run, perturbed)
