"""A reconstruction beside the truth, its control, the prior and the public mean image."""

from __future__ import annotations

import torch
from torch import Tensor

from gradward.metrics.matching import assign
from gradward.metrics.recovery import rdlv, recovered_fraction
from gradward.metrics.scores import EachImage, ImageScores, PictureComparison, PictureScores
from gradward.metrics.similarity import mse, psnr, ssim, ssim_matrix


def score_pictures(
    reconstructions: Tensor,
    control: Tensor | None,
    truths: Tensor,
    prior_image: Tensor,
    mean_image: Tensor,
) -> PictureComparison:
    """Score a reconstruction, its control and the prior by the same rules.

    Args:
        reconstructions: ``(n, C, H, W)`` in [0, 1], from the update.
        control: ``(k, C, H, W)`` from the wrong update, matched to the truths by itself, or None.
        truths: ``(m, C, H, W)``, the images that the update was computed on; ``m`` may differ
            from ``n``.
        prior_image: ``(C, H, W)``, where the attack started.
        mean_image: ``(C, H, W)``, mean of the public images.

    Returns:
        Scores of the matched images. The prior's are for the images matched to ``reconstructions``.

    Raises:
        ValueError: nothing to match, or shapes or values that do not fit.
    """
    if not len(reconstructions) or not len(truths) or (control is not None and not len(control)):
        raise ValueError("scoring needs at least one reconstruction and one true image")
    priors = prior_image.expand(truths.shape)
    p = ssim(priors, truths)
    guess = torch.maximum(p, ssim(mean_image.expand(truths.shape), truths))

    def score(
        pictures: Tensor, s: Tensor, columns: Tensor, baseline: Tensor
    ) -> tuple[PictureScores, ImageScores]:
        s, true = s[columns], truths[columns]
        recovered = recovered_fraction(s, guess[columns])
        each = ImageScores(
            ssim=placed(s, columns, len(truths)),
            recovered=placed(recovered, columns, len(truths)),
            rank=torch.full((len(truths),), torch.nan, dtype=torch.float64),
        )
        means = PictureScores(
            n_images=len(columns),
            ssim=_mean(s),
            prior_ssim=_mean(p[columns]),
            psnr=_mean(psnr(pictures, true)),
            mse=_mean(mse(pictures, true)),
            rdlv=_mean(rdlv(s, p[columns])),
            recovered=_mean(recovered),
            leakage=_mean((s - baseline[columns]).clamp_min(0)),
        )
        return means, each

    baseline, control_scores, control_each, control_assignment = guess, None, None, None
    if control is not None:
        rows, columns, of_control = _matched(control, truths)
        control_assignment = (rows, columns)
        control_scores, control_each = score(control[rows], of_control, columns, guess)
        baseline = torch.maximum(guess, of_control)
    rows, columns, s = _matched(reconstructions, truths)
    real, real_each = score(reconstructions[rows], s, columns, baseline)
    prior, prior_each = score(priors[columns], p, columns, guess)
    return PictureComparison(
        real=real,
        control=control_scores,
        prior=prior,
        assignment=(rows, columns),
        control_assignment=control_assignment,
        each=EachImage(real_each, control_each, prior_each),
    )


def placed(values: Tensor, columns: Tensor, number: int) -> Tensor:
    """Put each value at its column among ``number`` truths; nan elsewhere.

    Args:
        values: ``(n,)``.
        columns: ``(n,)`` int64.
        number: of the truths, ``m``.

    Returns:
        ``(m,)`` float64 on the CPU.
    """
    found = torch.full((number,), torch.nan, dtype=torch.float64)
    found[columns.cpu()] = values.detach().cpu().double()
    return found


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
