"""A few of a site's images beside what its model really saw of them; they stay at the site."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradward.data.images import ImageSet
from gradward.report.exposures import DAMAGE
from gradward.report.pictures import eight_bits
from gradward.report.site_folder import PERTURBED
from gradward.training import Batch, BatchSource
from gradward.whole_files import whole_file

MOST_PICTURES = 8


class RememberedPictures:
    """A source that remembers the first pictures it gave.

    They are those that were trained on. To ask the perturber for others would be another view of
    the image, or another draw, which nobody needs for a page.
    """

    def __init__(self, source: BatchSource) -> None:
        """Args: the source whose pictures are handed on."""
        self._source = source
        self.given: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return what the source gives."""
        batch = self._source.batch(indices)
        for position, picture in zip(indices, batch.images, strict=True):
            if len(self.given) < MOST_PICTURES:
                self.given.setdefault(position, picture.detach().cpu().clone())
        return batch

    def keep(self, job_folder: Path, number: int, mode: str, images: ImageSet) -> None:
        """Put the pictures in the place of an earlier round's, for their owner alone.

        A disk that is full loses them and nothing else: no training fails for a page.

        Args:
            job_folder: the site's private folder of the job.
            number: of the round.
            mode: of the perturber.
            images: of the site.
        """
        if self.given:
            with contextlib.suppress(OSError):
                _save(job_folder, number, mode, images, self.given)


@dataclass(frozen=True)
class PerturbedPictures:
    """Some images of one round.

    Attributes:
        round: in which they were trained on.
        mode: of the perturber; in a class mode a picture is a draw of the class, not of the image.
        positions: in the site's training set.
        labels, names, patients: of the images; the latter None where the source gives none.
        originals, pictures: ``(k, C, H, W)`` float32 in [0, 1], at a precision of 8 bits.
    """

    round: int
    mode: str
    positions: Sequence[int]
    labels: Sequence[int]
    names: Sequence[str] | None
    patients: Sequence[str] | None
    originals: Tensor
    pictures: Tensor


def read_perturbed(job_folder: Path) -> PerturbedPictures | None:
    """Return what was kept; None where nothing was, or where it cannot be read."""
    try:
        with np.load(job_folder / PERTURBED, allow_pickle=False) as arrays:
            return PerturbedPictures(
                **json.loads(str(arrays["about"])),
                originals=torch.from_numpy(arrays["originals"]).float() / 255,
                pictures=torch.from_numpy(arrays["pictures"]).float() / 255,
            )
    except DAMAGE:
        return None


def _save(
    job_folder: Path, number: int, mode: str, images: ImageSet, given: dict[int, Tensor]
) -> None:
    originals = images.subset(list(given))
    about = {
        "round": number,
        "mode": mode,
        "positions": list(given),
        "labels": originals.labels.tolist(),
        "names": originals.names,
        "patients": originals.patients,
    }
    with whole_file(job_folder / PERTURBED) as stream:
        np.savez_compressed(
            stream,
            about=np.array(json.dumps(about)),
            originals=eight_bits(originals.images),
            pictures=eight_bits(torch.stack(list(given.values()))),
        )
