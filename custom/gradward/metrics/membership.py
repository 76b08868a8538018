"""Was this patient there: what an attack's scores of members and of others prove."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

# Standard errors that a threshold must be good by to be chosen. The greatest ratios of the error
# rates are at the ends, where few errors are counted; at the two of a single test the luckiest of
# all thresholds wins there, and its luck does not last.
_CAUTION = 4.0
# Comparisons held at once while resampling.
_CHUNK = 2**22


def membership_auc(scores_in: Tensor, scores_out: Tensor) -> float:
    """Area under the ROC curve: how often a member scores above a non-member, ties one half.

    Args:
        scores_in: ``(n,)`` of members; the attack says "member" by high scores.
        scores_out: ``(m,)`` of others.

    Returns:
        In [0, 1]; one half is chance.

    Raises:
        ValueError: no scores, or scores that are not finite.
    """
    _check(scores_in, scores_out)
    return float(_auc(scores_in.double()[None], scores_out.double()[None]))


def membership_auc_upper(
    scores_in: Tensor,
    scores_out: Tensor,
    generator: torch.Generator,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> float:
    """One-sided upper bound on :func:`membership_auc`, by the percentile bootstrap.

    Members and others are resampled by themselves. Scores of one model, or of one draw, are not
    independent: give one score for each independent run or patient.

    Args:
        scores_in: ``(n,)`` of members.
        scores_out: ``(m,)`` of others.
        generator: CPU generator.
        confidence: in (0, 1).
        resamples: bootstrap samples.

    Returns:
        In [0, 1], not less than the area itself.

    Raises:
        ValueError: as :func:`membership_auc`; ``confidence`` leaves (0, 1).
    """
    area = membership_auc(scores_in, scores_out)
    _check_share("confidence", confidence)

    def resampled(scores: Tensor, count: int) -> Tensor:
        index = torch.randint(len(scores), (count, len(scores)), generator=generator)
        return scores.double()[index]

    chunk = max(1, _CHUNK // (len(scores_in) + len(scores_out)))
    areas = [
        _auc(resampled(scores_in, count), resampled(scores_out, count))
        for count in (min(chunk, resamples - start) for start in range(0, resamples, chunk))
    ]
    return max(area, float(torch.cat(areas).quantile(confidence)))


def empirical_epsilon(
    scores_in: Tensor, scores_out: Tensor, delta: float, confidence: float = 0.95
) -> float:
    """Lower bound on the epsilon of whatever made these scores.

    Under (epsilon, delta) no threshold has ``TPR > exp(epsilon) FPR + delta``, nor
    ``TNR > exp(epsilon) FNR + delta`` (Kairouz, Oh and Viswanath 2015). So error rates that are
    bounded from above (Clopper and Pearson 1934) bound epsilon from below, as in Jagielski et al.
    2020 (arXiv 2006.07709) and Nasr et al. 2021 (arXiv 2101.04535). The threshold is chosen on
    one half of the scores and judged on the other, so that a lucky choice proves nothing.

    Args:
        scores_in: ``(n,)``, one an independent run on data with the patient.
        scores_out: ``(m,)``, likewise on data without.
        delta: in [0, 1), of the claim to be tested.
        confidence: that epsilon is at least what is returned, in (0, 1).

    Returns:
        Not negative; 0 where nothing is proved. With ``n`` runs no more than about ``log(n / 7)``
        can be, however bad the mechanism.

    Raises:
        ValueError: fewer than two scores a side, scores that are not finite, or a share that is
            none.
    """
    _check(scores_in, scores_out)
    if min(len(scores_in), len(scores_out)) < 2:
        raise ValueError("choosing and judging a threshold needs two scores a side at least")
    _check_share("confidence", confidence)
    if not 0 <= delta < 1:
        raise ValueError(f"delta must lie in [0, 1), got {delta}")
    (members, judged_members), (others, judged_others) = map(_halves, (scores_in, scores_out))
    threshold = _choose_threshold(members, others, delta)
    missed, alarms = _errors(judged_members, judged_others, threshold)
    # Both bounds have to hold at once: each gets half of what may go wrong.
    tail = (1 - confidence) / 2
    fnr = _clopper_pearson(missed, len(judged_members), tail)
    fpr = _clopper_pearson(alarms, len(judged_others), tail)
    ratio = float(_ratio(fnr, fpr, delta))
    return math.log(ratio) if ratio > 1 else 0.0


def _halves(scores: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Split scores in two, whatever order they came in, and sort each half."""
    # Sorted scores taken in turns would make both halves alike, and the split pointless.
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    first, second = scores.double().cpu()[order].tensor_split(2)
    return np.sort(first.numpy()), np.sort(second.numpy())


def _choose_threshold(members: np.ndarray, others: np.ndarray, delta: float) -> float:
    """Return the threshold that would prove most, halfway between neighbouring scores."""
    scores = np.unique(np.concatenate([members, others]))
    thresholds = (scores[1:] + scores[:-1]) / 2 if len(scores) > 1 else scores
    missed, alarms = _errors(members, others, thresholds)
    ratios = _ratio(_wilson(missed, len(members)), _wilson(alarms, len(others)), delta)
    return float(thresholds[ratios.argmax()])


def _errors(
    members: np.ndarray, others: np.ndarray, thresholds: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Count members below each threshold, and others not below it; scores are sorted."""
    return np.searchsorted(members, thresholds), len(others) - np.searchsorted(others, thresholds)


def _ratio(fnr: np.ndarray, fpr: np.ndarray, delta: float) -> np.ndarray:
    """What ``exp(epsilon)`` must reach at least, if the error rates are at most these."""
    return np.maximum((1 - fnr - delta) / fpr, (1 - fpr - delta) / fnr)


def _wilson(errors: np.ndarray, total: int) -> np.ndarray:
    """Upper bound on an error rate by Wilson's score interval, in closed form for all at once."""
    rate, weight = errors / total, _CAUTION**2 / total
    return (rate + weight / 2 + np.sqrt(weight * (rate * (1 - rate) + weight / 4))) / (1 + weight)


def _clopper_pearson(errors: np.ndarray, total: int, tail: float) -> np.ndarray:
    """Exact upper bound on an error rate, wrong with probability ``tail`` at most."""
    return np.where(
        errors < total, beta.ppf(1 - tail, errors + 1, np.maximum(total - errors, 1)), 1.0
    )


def _auc(scores_in: Tensor, scores_out: Tensor) -> Tensor:
    """Row by row ``(R, n)`` against ``(R, m)``: the Mann-Whitney statistic over ``n m``."""
    ordered = scores_out.sort(1).values
    below = torch.searchsorted(ordered, scores_in, right=False)
    not_above = torch.searchsorted(ordered, scores_in, right=True)
    return (below + not_above).double().mean(1) / (2 * scores_out.shape[1])


def _check(scores_in: Tensor, scores_out: Tensor) -> None:
    for scores in (scores_in, scores_out):
        if scores.ndim != 1 or not len(scores) or not torch.isfinite(scores).all():
            raise ValueError(f"scores must be finite and (n,), n > 0, got {tuple(scores.shape)}")


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value}")
