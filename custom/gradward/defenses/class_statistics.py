"""What a site tells about its classes: one sum over patients, bounded and noised.

The sum is the slope of a least-squares classifier at its public fit: features times the public
classifier's errors. Images that it explains add almost nothing, so that little noise covers what
the site knows and the public does not. One Gaussian mechanism; all else is post-processing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gradward.data.images import ImageSet
from gradward.defenses.class_features import PublicFeatures
from gradward.defenses.class_pictures import Movement, draw_movements, move
from gradward.defenses.gaussian_mechanism import gaussian_sigma
from gradward.defenses.noise import FrozenNoise

# An image counts this much of the clipping norm towards the number of images.
_COUNT = 0.1
# Standard deviations that tell a signal from noise.
_CERTAIN = 3.0


@dataclass(frozen=True)
class PublicClassifier:
    """A ridge regression of the classes on features, of public images.

    Attributes:
        weights: ``(D, K)``, from features to scores; scores are frequencies less ``1 / K``.
        moment: ``(D, D)``, the mean outer product of the features, ridge included.
    """

    weights: Tensor
    moment: Tensor


@dataclass(frozen=True)
class SiteStatistics:
    """What left the site, noise included.

    Attributes:
        slope: ``(D, K)``, sum over the patients.
        count: of images, neither an integer nor positive any more.
        sigma: standard deviation of the noise on each entry of ``slope``.
        count_sigma: of the noise on ``count``.
    """

    slope: Tensor
    count: float
    sigma: float
    count_sigma: float


def fit_public(
    features: Tensor, labels: Tensor, num_classes: int, ridge: float
) -> PublicClassifier:
    """Fit the classifier that the site's statistics correct.

    Args:
        features: ``(N, D)``, norm 1.
        labels: ``(N,)`` int64.
        num_classes: K.
        ridge: added to the moment's diagonal.
    """
    x = features.double()
    moment = x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=torch.float64)
    targets = _targets(labels, num_classes).double()
    weights = torch.linalg.solve(moment, x.T @ targets / len(x))
    return PublicClassifier(weights.float(), moment.float())


def patient_sum(
    site: ImageSet,
    features: PublicFeatures,
    public: PublicClassifier,
    *,
    movement: Movement,
    copies: int,
    clip: float,
    generator: torch.Generator,
) -> Tensor:
    """Return the sum of the patients' records, each of L2 norm ``clip`` at most.

    A patient's record is, summed over its images, the slope (mean over the image and its moved
    copies, which teaches what moving a picture does not change) and a constant that counts.

    Args:
        site: the site's images; each is a patient of its own where no ids are given.
        features: from public images.
        public: the classifier at which the slope is taken.
        movement: of the copies.
        copies: of each image besides itself.
        clip: the most that one patient can add, the sensitivity.
        generator: moves the copies.

    Returns:
        ``(D K + 1,)`` float64.
    """
    num_classes = public.weights.shape[1]
    targets = _targets(site.labels, num_classes)
    record = torch.zeros(len(site), features.dimensions, num_classes)
    movements = _own_movements(site.images, movement, copies, generator)
    for pictures in (site.images, *(move(site.images, some) for some in movements)):
        x = features(pictures)
        record += x[:, :, None] * (targets - x @ public.weights)[:, None, :]
    record /= copies + 1
    counts = torch.full((len(site), 1), _COUNT * clip)
    rows = torch.cat([record.flatten(1), counts], dim=1).double()
    return _clipped(_by_patient(rows, site.patients), clip).sum(0)


def noised(
    total: Tensor,
    num_classes: int,
    *,
    epsilon: float,
    delta: float,
    clip: float,
    noise: FrozenNoise,
    context: str,
) -> SiteStatistics:
    """Pass a sum of records through the Gaussian mechanism.

    The noise is a keyed function of the very sum: the same sum gives the same release again, and
    any other sum gets noise of its own. It is rounded to floating point: attacks on that are
    outside the claim.

    Args:
        total: ``(D K + 1,)`` from :func:`patient_sum`.
        num_classes: K.
        epsilon: of adding or removing one patient.
        delta: likewise.
        clip: the sensitivity.
        noise: keyed by the site's secret.
        context: names what else decides about the sum.
    """
    sigma = gaussian_sigma(epsilon, delta, clip)
    exact = total.float()
    drawn = noise.normal(f"class release {sigma!r} {context}", exact, exact.shape)
    told = exact + sigma * drawn
    image = _COUNT * clip
    slope = told[:-1].view(-1, num_classes)
    return SiteStatistics(slope, float(told[-1]) / image, sigma, sigma / image)


def corrected(public: PublicClassifier, site: SiteStatistics, smoothing: int = 9) -> Tensor:
    """Return the public classifier's weights after one Newton step by the site's slope.

    Along each axis of the public moment the step is shrunk by the share of its energy that is not
    noise (James and Stein 1961), estimated from the noised slope itself over neighbouring axes;
    where the energy does not stand out from the noise, no step is taken. The division by the count
    is shrunk likewise: a site that is lost in the noise leaves the public classifier as it is.

    Args:
        public: the classifier to be corrected.
        site: the release.
        smoothing: axes over which energies are averaged, odd.

    Returns:
        ``(D, K)`` float32.
    """
    certain = _CERTAIN * site.count_sigma
    if site.count <= certain:
        return public.weights.clone()
    images = site.count / (1 - (certain / site.count) ** 2)
    values, axes = torch.linalg.eigh(public.moment.double())
    values = values.clamp_min(1e-9)
    step = (axes.T @ site.slope.double()) / values.sqrt()[:, None]

    def smooth(energy: Tensor) -> Tensor:
        padded = F.pad(energy[None, None], (smoothing // 2, smoothing // 2), mode="replicate")
        return F.avg_pool1d(padded, smoothing, 1)[0, 0]

    noise = smooth(site.sigma**2 / values)
    energy = smooth(step.square().mean(1)).clamp_min(1e-12)
    # The relative deviation of a mean of so many squares of normal variables.
    spread = (2 / (smoothing * step.shape[1])) ** 0.5
    kept = torch.where(energy > noise * (1 + _CERTAIN * spread), 1 - noise / energy, 0.0)
    moved_by = axes @ (step * (kept / values.sqrt())[:, None]) / images
    return (public.weights.double() + moved_by).float()


def _own_movements(
    images: Tensor, movement: Movement, copies: int, generator: torch.Generator
) -> list[Tensor]:
    """Return ``(N, 2, 3)`` for each copy; an image's movements depend on no other image.

    Drawn in turns, they would change with each patient that comes or goes, and the sum with them.
    """
    salt = torch.randint(2**62, (1,), generator=generator).numpy().tobytes()
    drawn = []
    for image in images:
        seed = hashlib.sha256(salt + image.contiguous().numpy().tobytes()).digest()
        own = torch.Generator().manual_seed(int.from_bytes(seed[:8], "big"))
        drawn.append(draw_movements(copies, movement, own))
    return list(torch.stack(drawn, dim=1)) if copies else []


def _targets(labels: Tensor, num_classes: int) -> Tensor:
    return F.one_hot(labels, num_classes).float() - 1 / num_classes


def _by_patient(rows: Tensor, patients: tuple[str, ...] | None) -> Tensor:
    if patients is None:
        return rows
    places: dict[str, int] = {}
    place = torch.tensor([places.setdefault(patient, len(places)) for patient in patients])
    return torch.zeros(len(places), rows.shape[1], dtype=rows.dtype).index_add_(0, place, rows)


def _clipped(records: Tensor, clip: float) -> Tensor:
    norms = records.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return records * (clip / norms).clamp(max=1)
