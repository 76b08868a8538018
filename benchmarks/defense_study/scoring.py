"""What an attacker's pictures are worth, as sums that add up over victims and seeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from gradward.metrics import gallery_ranks, mse, recovered_fraction, ssim
from gradward.metrics.linkage import linkage_by_distance

from .protocol import Trial

# Victims on a contact sheet.
SHOWN = 6


@dataclass(frozen=True)
class Evidence:
    """Sums over the victims of one attack.

    Sums, not means, so that seeds are pooled by adding; squares and the cross term give the
    standard error of the ratio of mean errors.

    Attributes:
        victims: how many.
        mse: squared errors of the attacker's pictures.
        prior: squared errors of the public class means.
        mse_mse: squares of the former.
        prior_prior: squares of the latter.
        mse_prior: products of both.
        linked: probabilities that the attacker names the true one of the gallery.
        reidentified: victims whose picture is nearest, by MSE, to the true image alone.
        ssim: similarities to the true images.
        recovered: recovered fractions, beyond the class mean.
        correct: pictures that the judge puts in the victim's class, weighted so that each class
            counts alike.
        chance: of being linked by guessing.
    """

    victims: int = 0
    mse: float = 0.0
    prior: float = 0.0
    mse_mse: float = 0.0
    prior_prior: float = 0.0
    mse_prior: float = 0.0
    linked: float = 0.0
    reidentified: float = 0.0
    ssim: float = 0.0
    recovered: float = 0.0
    correct: float = 0.0
    chance: float = 0.0

    def to_dict(self) -> dict[str, float]:
        """Return it as JSON values."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def pooled(parts: Iterable[Evidence]) -> Evidence:
    """Add up the evidence of the same attack on different victims."""
    kept = list(parts)
    return Evidence(*(sum(getattr(part, item.name) for part in kept) for item in fields(Evidence)))


class Scorer:
    """Scores an attacker's pictures of the victims and keeps a few to look at.

    Args:
        trial: whose victims and galleries.
        judge: maps images to logits; it is put into evaluation mode.

    Attributes:
        pictures: attack to its pictures of the first victims, by their place.
    """

    def __init__(self, trial: Trial, judge: nn.Module) -> None:
        self._trial, self._judge = trial, judge.eval()
        self.pictures: dict[str, dict[int, Tensor]] = {}

    def score(
        self,
        attack: str,
        reconstructions: Tensor,
        columns: Tensor | None = None,
        linked: Tensor | None = None,
    ) -> Evidence:
        """Score one picture for each victim.

        Args:
            attack: its name on the contact sheet.
            reconstructions: ``(V, C, H, W)`` in [0, 1].
            columns: ``(V,)`` which victims of the trial these are; all by default.
            linked: ``(V,)`` probabilities of a linkage better than by the picture's distance.
        """
        rows = torch.arange(len(self._trial.victims)) if columns is None else columns
        self.pictures[attack] = {
            place: picture
            for place, picture in zip(rows.tolist(), reconstructions, strict=True)
            if place < SHOWN
        }
        return _score(self._trial, self._judge, reconstructions, rows, linked)


def _score(
    trial: Trial, judge: nn.Module, reconstructions: Tensor, rows: Tensor, linked: Tensor | None
) -> Evidence:
    victims = trial.sites[0].subset(trial.victims[rows])
    galleries, truths = trial.galleries[rows], trial.truths[rows]
    by_distance = linkage_by_distance(reconstructions, trial.pool.images, galleries, truths)
    # The attacker keeps the better of two rules over all victims, not the better of each.
    if linked is None or float(by_distance.mean()) > float(linked.mean()):
        linked = by_distance
    guesses = trial.class_means[victims.labels]
    error, prior = mse(reconstructions, victims.images), mse(guesses, victims.images)
    similarity = ssim(reconstructions, victims.images)
    ranks = torch.cat(
        [
            gallery_ranks(picture[None], truth[None], trial.pool.images[row])
            for picture, row, truth in zip(reconstructions, galleries, truths, strict=True)
        ]
    )
    with torch.no_grad():
        correct = judge(reconstructions).argmax(dim=1) == victims.labels
    recovered = recovered_fraction(similarity, ssim(guesses, victims.images))
    return Evidence(
        victims=len(rows),
        mse=_sum(error),
        prior=_sum(prior),
        mse_mse=_sum(error**2),
        prior_prior=_sum(prior**2),
        mse_prior=_sum(error * prior),
        linked=_sum(linked),
        reidentified=_sum(ranks == 1),
        ssim=_sum(similarity),
        recovered=_sum(recovered.nan_to_num(0.0)),
        correct=_sum(correct * _class_weights(victims.labels)),
        chance=len(rows) / galleries.shape[1],
    )


def _class_weights(labels: Tensor) -> Tensor:
    """Return weights of mean 1 that give each class present the same total."""
    counts = labels.bincount()
    return len(labels) / (int((counts > 0).sum()) * counts[labels])


def _sum(values: Tensor) -> float:
    return float(values.double().sum())
