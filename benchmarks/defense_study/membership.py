"""Was this image among those that a perturber was fitted on: refits with and without it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import t
from torch import Tensor, nn
from torch.nn import functional as F

from gradward.data import ImageSet, split_by_patient
from gradward.metrics.membership import membership_auc
from gradward.training import BatchSource, State

from .defence import Case
from .federation import local_update, site_settings
from .perturbers import fit, release
from .statistics import CONFIDENCE

_EPOCHS = 3
_CHUNK = 128


@dataclass(frozen=True)
class Shadow:
    """One refit as its attackers see it.

    Attributes:
        source: what the site trains on.
        likelihood: maps images and labels to how likely the released statistics make them; None
            where no statistics are released.
    """

    source: BatchSource
    likelihood: Callable[[Tensor, Tensor], Tensor] | None


# Refits a defence on these images; the number tells the refits apart.
Refit = Callable[[Case, ImageSet, int], Shadow]


def refit_perturber(mode: str) -> Refit:
    """Return what refits a site-fitted mode of the perturbation."""

    def refit(case: Case, images: ImageSet, number: int) -> Shadow:
        generator = case.trial.generator("shadow", number)
        # Each has an autoencoder of its own: it, too, was fitted on the members.
        kept = case.scratch / f"shadow {mode} {case.setting} {number}.pt"
        fitted = fit(case, mode, "site", images, generator, kept, judged=False)
        latent = fitted.channel.latent
        entropies = torch.linalg.slogdet(latent.whiten.double()).logabsdet

        def likelihood(pictures: Tensor, labels: Tensor) -> Tensor:
            rows = labels if latent.conditional else torch.zeros_like(labels)
            distances = latent.white(pictures, labels).double().square().sum(dim=1)
            return entropies[rows] - distances / 2

        return Shadow(release(case, fitted, images, generator).source, likelihood)

    return refit


def audit_membership(case: Case, refit: Refit, model: nn.Module, start: State) -> dict[str, float]:
    """Refit on random halves of twice a site's images and tell the halves apart.

    Each refit in turn is the one under attack; the others are the attacker's shadows, from which it
    knows every image's scores with and without it (Carlini et al. 2022, arXiv 2112.03570, with the
    midpoint of both means as threshold).

    Args:
        case: gives the images and the number of refits.
        refit: of the defence.
        model: the network that the site trains.
        start: its state before the site's first round.

    Returns:
        Areas under the ROC curve, their mean over the refits, by what the attacker holds: ``x'``,
        ``statistics``, ``update``; and with ``" upper"`` the one-sided 95 % bound of each.
    """
    trial = case.trial
    images = trial.pool.subset(range(min(2 * len(trial.sites[0]), len(trial.pool))))
    scores: dict[str, list[Tensor]] = {}
    members = torch.zeros(case.effort.shadows, len(images), dtype=torch.bool)
    for number in range(case.effort.shadows):
        half = split_by_patient(
            images.patients or (), (1, 1), seed=number, strata=images.labels.tolist()
        )[0]
        members[number, half] = True
        shadow = refit(case, images.subset(half), number)
        seen = {
            "x'": _nearness(shadow.source, images),
            "update": _fit_of_update(case, model, start, shadow.source, images, number),
        }
        if shadow.likelihood is not None:
            seen["statistics"] = shadow.likelihood(images.images, images.labels)
        for name, values in seen.items():
            scores.setdefault(name, []).append(values.double())
    found: dict[str, float] = {}
    for name, rows in scores.items():
        value, upper = _area(torch.stack(rows), members)
        found |= {name: round(value, 4), f"{name} upper": round(upper, 4)}
    return found


def _nearness(source: BatchSource, images: ImageSet) -> Tensor:
    """Return minus each image's squared distance to the nearest perturbed picture of its class."""
    batches = [source.batch(range(len(source))) for _ in range(_EPOCHS)]
    pictures = torch.cat([batch.images for batch in batches]).flatten(1)
    labels = torch.cat([batch.labels for batch in batches])
    classes = labels if labels.ndim == 1 else labels.argmax(dim=1)
    parts = []
    for image, label in zip(
        images.images.flatten(1).split(_CHUNK), images.labels.split(_CHUNK), strict=True
    ):
        distances = torch.cdist(image, pictures).square()
        distances[label[:, None] != classes] = math.inf
        # A class of which nothing was drawn tells nothing.
        parts.append(distances.min(dim=1).values.nan_to_num(posinf=float(pictures.shape[1])))
    return -torch.cat(parts)


def _fit_of_update(
    case: Case, model: nn.Module, start: State, source: BatchSource, images: ImageSet, number: int
) -> Tensor:
    """Return minus each image's loss under the model that the site's first update makes."""
    generator = case.trial.generator("shadow training", number)
    update = local_update(model, start, source, site_settings(case.trial), generator)
    own = copy.deepcopy(model)
    own.load_state_dict({name: value + update[name] for name, value in start.items()})
    own.eval()
    with torch.no_grad():
        logits = torch.cat([own(part) for part in images.images.split(_CHUNK)])
    return -F.cross_entropy(logits, images.labels, reduction="none")


def _area(scores: Tensor, members: Tensor) -> tuple[float, float]:
    """Return the mean area over the refits and its upper bound.

    Args:
        scores: ``(K, N)`` of each image under each refit, higher for members.
        members: ``(K, N)`` bool.
    """
    areas = []
    for number in range(len(scores)):
        others = torch.arange(len(scores)) != number
        inside, outside = members[others].double(), (~members[others]).double()
        known = (inside.sum(dim=0) > 0) & (outside.sum(dim=0) > 0)
        with_it = (scores[others] * inside).sum(dim=0) / inside.sum(dim=0).clamp_min(1)
        without = (scores[others] * outside).sum(dim=0) / outside.sum(dim=0).clamp_min(1)
        excess = (scores[number] - (with_it + without) / 2)[known]
        own = members[number, known]
        areas.append(membership_auc(excess[own], excess[~own]))
    n = len(areas)
    mean = sum(areas) / n
    deviation = math.sqrt(sum((area - mean) ** 2 for area in areas) / (n - 1))
    return mean, min(1.0, mean + float(t.ppf(CONFIDENCE, n - 1)) * deviation / math.sqrt(n))
