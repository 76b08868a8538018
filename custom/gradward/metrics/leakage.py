"""One reconstruction of an update, judged against the images that the update was computed on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradward.data.images import ImageSet
from gradward.metrics.matching import assign
from gradward.metrics.recovery import rdlv, recovered_fraction
from gradward.metrics.reidentification import MINIMUM_GALLERY, build_gallery, gallery_ranks
from gradward.metrics.scores import LeakageScores, Scores
from gradward.metrics.similarity import mse, psnr, ssim, ssim_matrix


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
    if not len(reconstructions) or not len(truths) or (control is not None and not len(control)):
        raise ValueError("scoring needs at least one reconstruction and one true image")
    if not torch.equal(site_images.subset(truth_positions).images, truths.images):
        raise ValueError("truth_positions must point at the truths in site_images")
    gallery, places = build_gallery(site_images, decoys, truth_positions, gallery_size)
    images = truths.images
    priors = prior_image.expand(images.shape)
    p = ssim(priors, images)
    guess = torch.maximum(p, ssim(mean_image.expand(images.shape), images))

    def score(pictures: Tensor, s: Tensor, columns: Tensor, baseline: Tensor) -> Scores:
        s, true, places_of = s[columns], images[columns], places[columns]
        ranks = gallery_ranks(pictures, places_of, gallery)
        return Scores(
            n_images=len(columns),
            ssim=_mean(s),
            prior_ssim=_mean(p[columns]),
            psnr=_mean(psnr(pictures, true)),
            mse=_mean(mse(pictures, true)),
            rdlv=_mean(rdlv(s, p[columns])),
            recovered=_mean(recovered_fraction(s, guess[columns])),
            reid=_mean((ranks == 1).double()),
            rank=ranks.quantile(0.5).item(),
            gallery=len(gallery),
            leakage=_mean((s - baseline[columns]).clamp_min(0)),
        )

    baseline, control_scores, control_assignment = guess, None, None
    if control is not None:
        rows, columns, of_control = _matched(control, images)
        control_assignment = (rows, columns)
        control_scores = score(control[rows], of_control, columns, guess)
        baseline = torch.maximum(guess, of_control)
    rows, columns, s = _matched(reconstructions, images)
    return LeakageScores(
        real=score(reconstructions[rows], s, columns, baseline),
        control=control_scores,
        prior=score(priors[columns], p, columns, guess),
        assignment=(rows, columns),
        control_assignment=control_assignment,
    )


def _matched(pictures: Tensor, truths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Assignment, and each truth's SSIM: of its picture, or of the best one if it has none."""
    similarity = ssim_matrix(pictures, truths)
    rows, columns = assign(similarity)
    s = similarity.max(0).values
    s[columns] = similarity[rows, columns]
    return rows, columns, s


def _mean(values: Tensor) -> float:
    """Mean of what is defined; nan if nothing is."""
    return float(values.double().nanmean())
