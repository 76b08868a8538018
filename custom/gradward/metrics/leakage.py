"""One reconstruction of an update, judged against the images that the update was computed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from gradward.data.images import ImageSet
from gradward.metrics.pictures import placed, score_pictures
from gradward.metrics.reidentification import MINIMUM_GALLERY, build_gallery, gallery_ranks
from gradward.metrics.scores import EachImage, ImageScores, LeakageScores, PictureScores, Scores


def score_reconstructions(
    reconstructions: Tensor,
    control: Tensor | None,
    truths: ImageSet,
    prior_image: Tensor,
    mean_image: Tensor,
    site_images: ImageSet,
    truth_positions: Sequence[int] | Tensor,
    decoys: ImageSet,
    gallery_size: int = MINIMUM_GALLERY,
) -> LeakageScores:
    """Score a reconstruction, its control and the prior by the same rules.

    Args:
        reconstructions: ``(n, C, H, W)`` in [0, 1], from the site's update.
        control: ``(k, C, H, W)`` from the wrong update, matched to the truths by itself, or None.
        truths: the images that the update was computed on; their number may differ from ``n``.
        prior_image: ``(C, H, W)``, where the attack started.
        mean_image: ``(C, H, W)``, mean of the public images.
        site_images: all images of the site.
        truth_positions: positions of ``truths`` in ``site_images``.
        decoys: public images that fill up the gallery.
        gallery_size: pictures that the gallery holds at least.

    Returns:
        Scores of the matched images. The prior's are for the images matched to ``reconstructions``.

    Raises:
        ValueError: nothing to match, truths that are not where ``truth_positions`` says, or
            shapes or values that do not fit.
        DataError: too few decoys.
    """
    if not torch.equal(site_images.subset(truth_positions).images, truths.images):
        raise ValueError("truth_positions must point at the truths in site_images")
    pictures = score_pictures(reconstructions, control, truths.images, prior_image, mean_image)
    gallery, places = build_gallery(site_images, decoys, truth_positions, gallery_size)

    def recognised(
        scores: PictureScores, each: ImageScores, images: Tensor, columns: Tensor
    ) -> tuple[Scores, ImageScores]:
        ranks = gallery_ranks(images, places[columns], gallery)
        with_gallery = Scores(
            **asdict(scores),
            reid=float((ranks == 1).double().mean()),
            rank=ranks.quantile(0.5).item(),
            gallery=len(gallery),
        )
        return with_gallery, replace(each, rank=placed(ranks, columns, len(truths)))

    each, control_scores, control_each = pictures.each, None, None
    if control is not None and pictures.control and pictures.control_assignment and each.control:
        rows, columns = pictures.control_assignment
        control_scores, control_each = recognised(
            pictures.control, each.control, control[rows], columns
        )
    rows, columns = pictures.assignment
    priors = prior_image.expand(len(columns), *prior_image.shape)
    real, real_each = recognised(pictures.real, each.real, reconstructions[rows], columns)
    prior, prior_each = recognised(pictures.prior, each.prior, priors, columns)
    return LeakageScores(
        real=real,
        control=control_scores,
        prior=prior,
        assignment=pictures.assignment,
        control_assignment=pictures.control_assignment,
        each=EachImage(real_each, control_each, prior_each),
    )
