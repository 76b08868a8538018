"""Who holds which images: public part, sites, test images, victims and their galleries."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradward.data import (
    PARTS,
    DataError,
    ImageSet,
    dataset_spec,
    group_images,
    load_public_set,
    load_split,
    split_by_patient,
)
from gradward.defenses.adversary_networks import class_means
from gradward.metrics.linkage import same_class_gallery

N_SITES = 3
PUBLIC_SHARE = 0.1
GALLERY = 100
KNOWN = 1500
# What is dear is measured on this seed alone: acceptance gates, gradient inversions.
FIRST_SEED = 0
# Candidates that no site holds; galleries need a hundred of a class.
DECOYS = 1000


@dataclass(frozen=True)
class StudySet:
    """How a data set is divided.

    Attributes:
        dataset: its name in gradward's catalogue.
        image_size: height and width, pixels.
        channels: 1 or 3.
        num_classes: classes 0 to ``num_classes - 1`` are kept, the rest is left out.
        public: images of the public part.
        site: images of each of the three sites.
        test: images that utility is measured on.
        keys: lists of a MONAI data list to read; other files are read whole.
    """

    dataset: str
    image_size: tuple[int, int]
    channels: int
    num_classes: int
    public: int
    site: int
    test: int
    keys: tuple[str, ...] = ()


# The COVID-19 films come from another hospital and another age group, so that only normal against
# pneumonia says anything; "mnist-1500" and "pneumonia-1500" are for the certified curve.
_XRAY_KEYS = ("site-9", "site-1", "site-5", "site-2", "site-6", "site-3", "site-7")
SETS = {
    "mnist": StudySet("mnist", (28, 28), 1, 10, public=300, site=500, test=2000),
    "fashion": StudySet("fashion-mnist", (28, 28), 1, 10, public=60, site=130, test=150),
    "pneumonia": StudySet("pneumonia", (28, 28), 1, 2, public=150, site=500, test=1000),
    "breast": StudySet("breast", (28, 28), 1, 2, public=72, site=170, test=190),
    "chest-xray": StudySet(
        "chest-xray",
        (64, 64),
        1,
        2,
        public=40,
        site=95,
        test=100,
        keys=(*_XRAY_KEYS, "testing", "validation", "unused"),
    ),
    "histology": StudySet("histology", (32, 32), 3, 2, public=225, site=42, test=64),
    "mnist-1500": StudySet("mnist", (28, 28), 1, 10, public=300, site=1500, test=2000),
    "pneumonia-1500": StudySet("pneumonia", (28, 28), 1, 2, public=150, site=1500, test=500),
}

FRONTIER_SETS = ("mnist", "fashion", "pneumonia", "breast", "chest-xray")
# Inversion that does not know the defence is the paper's claim, on general sets and a medical one.
NAIVE_SETS = ("mnist", "fashion", "pneumonia", "histology")
CERTIFIED_SETS = ("mnist", "pneumonia", "mnist-1500", "pneumonia-1500")


@dataclass(frozen=True)
class Trial:
    """One data set, divided by one seed; every arm of the study gets the same.

    Attributes:
        name: of the study set.
        seed: of the division and of all that is drawn later.
        public: what server and sites may use freely.
        known: what the attacker learns from: the public images and up to half of those that nobody
            holds, so that a small public part does not make for a weak attacker.
        sites: three sites' images; the victims are the first one's.
        test: clean images that utility is measured on.
        pool: candidates of the galleries: all images of the sites, and some that nobody holds or
            knows. The first site's come first: a victim has the same position in both.
        victims: ``(V,)`` positions in the first site.
        galleries: ``(V, G)`` positions in ``pool`` of same-class images, one of which, at
            ``truths``, is the victim; no other is of the victim's patient.
        truths: ``(V,)`` column of each victim in its gallery.
        class_means: ``(K, C, H, W)`` of the known images: what the label alone tells.
    """

    name: str
    seed: int
    num_classes: int
    public: ImageSet
    known: ImageSet
    sites: tuple[ImageSet, ...]
    test: ImageSet
    pool: ImageSet
    victims: Tensor
    galleries: Tensor
    truths: Tensor
    class_means: Tensor

    @property
    def victim_images(self) -> ImageSet:
        """The images under attack."""
        return self.sites[0].subset(self.victims)

    def generator(self, *purpose: object) -> torch.Generator:
        """Return a CPU generator of its own for each purpose, the same at every call."""
        text = repr((self.name, self.seed, *purpose)).encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
        return torch.Generator().manual_seed(seed)


def load_trial(name: str, seed: int, n_victims: int) -> Trial:
    """Divide a study set by patient.

    Args:
        name: one of ``SETS``.
        seed: another seed, another division.
        n_victims: at most so many images of the first site are attacked.

    Raises:
        DataError: the files are not here, or the set is too small.
    """
    study = SETS[name]
    if study.dataset == "histology":
        public, rest = _histology(study)
        shares = [study.site] * N_SITES + [study.test]
        parts = _divide(rest, shares, seed)
    else:
        everything = _load(study)
        shares = [study.public, *[study.site] * N_SITES, study.test]
        public, *parts = _divide(everything, shares, seed)
        _check_public(public, everything, name)
    *sites, test, reserve = parts
    aside = min(KNOWN - len(public), len(reserve) // 2)
    known = public
    if aside > 0:
        learned, reserve = _divide(reserve, [aside], seed)
        known = _joined([public, learned])
    generator = torch.Generator().manual_seed(seed)
    decoys = torch.randperm(len(reserve), generator=generator)[:DECOYS]
    pool = _joined([*sites, reserve.subset(decoys)])
    victims = torch.randperm(len(sites[0]), generator=generator)[:n_victims]
    galleries, truths = _galleries(pool, victims, generator)
    return Trial(
        name=name,
        seed=seed,
        num_classes=study.num_classes,
        public=public,
        known=known,
        sites=tuple(sites),
        test=test,
        pool=pool,
        victims=victims,
        galleries=galleries,
        truths=truths,
        class_means=class_means(known.images, known.labels, study.num_classes),
    )


def _load(study: StudySet) -> ImageSet:
    """Return all images of a set, with the group of each (patient, or equal pixels) as patient."""
    spec: dict[str, Any] = dataset_spec(study.dataset)
    form: Any = {"image_size": study.image_size, "channels": study.channels}
    if study.keys:
        spec = spec | {"training": "{site}"}
        parts = [load_split(spec, "training", site=key, **form) for key in study.keys]
    else:
        spec = {k: v for k, v in spec.items() if k not in ("public", "shares")} | {"sites": ["all"]}
        splits = ("training", "validation", "testing")
        parts = [load_split(spec, split, site="all", **form) for split in splits]
    joined = _joined(parts)
    digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in joined.images]
    patients = joined.patients or ("",) * len(joined)
    # "image-<n>" of `group_images` names those without a patient.
    whole = ImageSet(joined.images, joined.labels, tuple(group_images(patients, digests)))
    return whole.subset((whole.labels < study.num_classes).nonzero().flatten())


def _histology(study: StudySet) -> tuple[ImageSet, ImageSet]:
    """Return the declared public quadrant and the rest; its patches stand for patients."""
    spec = dataset_spec(study.dataset)
    form: Any = {"image_size": study.image_size, "channels": study.channels}
    declared = load_public_set(spec, name=study.dataset, **form)
    public = _joined([declared.part(part) for part in PARTS])
    sites = [load_split(spec, "training", site=f"site-{n}", **form) for n in range(1, 7)]
    held = [load_split(spec, split, site="", **form) for split in ("validation", "testing")]
    rest = _joined([*sites, *held])
    return public, ImageSet(rest.images, rest.labels, tuple(map(str, range(len(rest)))))


def _divide(images: ImageSet, counts: Sequence[int], seed: int) -> list[ImageSet]:
    """Cut off parts of about these sizes, whole patients each; what is left comes last."""
    left = len(images) - sum(counts)
    if left < 0:
        raise DataError(f"{len(images)} images do not suffice for parts of {list(counts)}")
    shares = [*counts, left] if left else list(counts)
    indices = split_by_patient(
        images.patients or (), shares, seed=seed, strata=images.labels.tolist()
    )
    return [images.subset(part) for part in indices] + ([] if left else [images.subset([])])


def _check_public(public: ImageSet, everything: ImageSet, name: str) -> None:
    own, total = len(set(public.patients or ())), len(set(everything.patients or ()))
    if own > PUBLIC_SHARE * total:
        raise DataError(f"the public part of {name} holds {own} of {total} patients: over a tenth")


def _joined(parts: Sequence[ImageSet]) -> ImageSet:
    patients: tuple[str, ...] | None = None
    if all(part.patients is not None for part in parts):
        patients = tuple(patient for part in parts for patient in part.patients or ())
    return ImageSet(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        patients,
    )


def _galleries(
    pool: ImageSet, victims: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the galleries, all of the size that the scarcest of the victims' classes allows."""
    patients = pool.patients or ()
    sizes = []
    for victim in victims.tolist():
        alike = (pool.labels == pool.labels[victim]).nonzero().flatten().tolist()
        sizes.append(1 + sum(patients[i] != patients[victim] for i in alike))
    return same_class_gallery(pool, victims, min(GALLERY, *sizes), generator)
