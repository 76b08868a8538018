"""The disjoint parts of a public image set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from gradward.data.images import ImageSet
from gradward.data.splits import split_by_patient

PARTS = ("prior", "control", "decoys", "canary", "fit")

# Re-identification wants a gallery of 100; what is lost to whole patients is allowed for.
_DECOYS_WANTED = 120
_DECOYS_LEAST, _DECOYS_MOST = 0.3, 0.7
_OTHERS = {"prior": 0.2, "control": 0.15, "canary": 0.25, "fit": 0.4}


@dataclass(frozen=True)
class PublicParts:
    """Public images as a source hands them over.

    Attributes:
        parts: part name to images, in the form asked for.
        checksum: ``sha256:<hex>`` of the source, see `Checksum`.
        licence: as the source declares it.
        prior: ``(C, H, W)`` picture that the source names as the attacker's prior, or None.
    """

    parts: Mapping[str, ImageSet]
    checksum: str
    licence: str
    prior: Tensor | None = None


class Checksum:
    """SHA-256 over the public images as they lie at the source, part by part.

    Neither the size nor the channels that a job asks for enter, so that server and sites agree on
    it whatever they train; the division into parts, the order and the labels do.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, part: str, content: bytes, label: int | None = None) -> None:
        """Add one image: its part, its label and its source pixels or file bytes."""
        self._hash.update(f"{part} {label} {len(content)}\n".encode())
        self._hash.update(content)

    def __str__(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def divide(patients: Sequence[str], labels: Sequence[int]) -> dict[str, list[int]]:
    """Divide public images among `PARTS`, by patient and evenly over the classes.

    About 120 images become decoys (within 30 to 70 % of all), the rest is shared by the others.
    """
    decoys = min(_DECOYS_MOST, max(_DECOYS_LEAST, _DECOYS_WANTED / max(1, len(patients))))
    shares = {name: (1 - decoys) * share for name, share in _OTHERS.items()} | {"decoys": decoys}
    indices = split_by_patient(patients, [shares[name] for name in PARTS], strata=labels)
    return dict(zip(PARTS, indices, strict=True))
