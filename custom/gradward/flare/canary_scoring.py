"""Scoring of canaries on the server: their truth is public, so that no site need be asked."""

from __future__ import annotations

import torch

from gradward.data import PublicSet
from gradward.flare.canary import canary_positions, pinned_canaries
from gradward.flare.experiment import Experiment
from gradward.flare.precision import answer_of
from gradward.flare.protocol import KNOWN, ScoreReply, ScoreRequest
from gradward.metrics.leakage import score_reconstructions


def score_canaries(
    request: ScoreRequest, n_images: int, experiment: Experiment, public: PublicSet
) -> ScoreReply:
    """Answer as :class:`~gradward.flare.scorer.LeakageScorer` would, by the same rules.

    Args:
        request: reconstructions of a canary update and its control.
        n_images: different images that the site says it used.
        experiment: of the job.
        public: the declared public images.

    Raises:
        DataError: too few decoys.
    """
    pinned = pinned_canaries(public, experiment.seed, request.site)
    # Beyond the reconstructions and the canaries there are, more truths would only be repeats: a
    # site that overstates shall not fill the server's memory.
    n_images = min(n_images, max(len(request.images), len(pinned)))
    positions = canary_positions(n_images, len(pinned))
    used = pinned.subset(sorted(set(positions)))
    scores = score_reconstructions(
        torch.from_numpy(request.images),
        None if request.control is None else torch.from_numpy(request.control),
        used.subset(positions),
        prior_image=public.prior_image,
        mean_image=public.mean_image,
        site_images=used,
        truth_positions=positions,
        decoys=public.part("decoys"),
    )
    return answer_of(scores, KNOWN)
