"""What each scored reconstruction showed of which image. It shows patients and stays at the site.

A file for each round and attack, ``exposures/round-<r>-<attack>.npz`` in the site's private folder
of the job: the site's own page is built from them, also long after the job's processes are gone.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradward.data.images import ImageSet
from gradward.metrics.scores import EachImage, ImageScores, LeakageScores
from gradward.report.pictures import eight_bits
from gradward.report.site_folder import EXPOSURES
from gradward.whole_files import whole_file

SCHEMA = 1
# Of one reconstruction. Its scores are kept for all images.
MOST_PICTURES = 24
MOST_PICTURE_BYTES = 8 * 2**20
# What reading a cut or foreign npz raises.
DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)
ROLES = ("real", "control", "prior")


@dataclass(frozen=True)
class Pictures:
    """The images that a reconstruction showed most of, 8 bits a pixel, most exposed first.

    Attributes:
        rows: ``(k,)`` int64, where they stand among the exposure's ``positions``.
        truths, reconstructions: ``(k, C, H, W)`` uint8.
        controls: the same, or None without control.
        prior: ``(C, H, W)`` uint8.
        labels: class of each.
        names, patients: of each, or None where the source gives none.
    """

    rows: NDArray[np.int64]
    truths: NDArray[np.uint8]
    reconstructions: NDArray[np.uint8]
    controls: NDArray[np.uint8] | None
    prior: NDArray[np.uint8]
    labels: Sequence[int]
    names: Sequence[str] | None
    patients: Sequence[str] | None


@dataclass(frozen=True)
class Exposure:
    """One scored reconstruction, image by image.

    Attributes:
        round, attack: whose it is.
        known: whether the site knew which of its images made the update, or took all.
        gallery: pictures in the gallery.
        positions: ``(m,)`` int64, the images in the site's training set.
        each: their scores.
        pictures: of the most exposed of them.
    """

    round: int
    attack: str
    known: bool
    gallery: int
    positions: NDArray[np.int64]
    each: EachImage
    pictures: Pictures

    @classmethod
    def of(
        cls,
        scores: LeakageScores,
        *,
        number: int,
        attack: str,
        known: bool,
        positions: Sequence[int],
        truths: ImageSet,
        reconstructions: Tensor,
        control: Tensor | None,
        prior: Tensor,
    ) -> Exposure:
        """Take what was scored.

        Args:
            scores: of the reconstruction.
            number: of the round.
            attack: its name.
            known: as of the class.
            positions: of ``truths`` in the site's training set.
            truths: ``(m, C, H, W)``, with names and patients.
            reconstructions, control: ``(n, C, H, W)``, as they were scored.
            prior: ``(C, H, W)``.
        """
        most = max(1, MOST_PICTURE_BYTES // (4 * prior.numel()))
        kept = by_exposure(scores.each)[: min(most, MOST_PICTURES)]
        rows, columns = (half.tolist() for half in scores.assignment)
        place = {column: index for index, column in enumerate(columns)}
        pairs = [place[row] for row in kept]
        beside = scores.control_beside
        shown = truths.subset(kept)
        pictures = Pictures(
            rows=np.array(kept, dtype=np.int64),
            truths=eight_bits(shown.images),
            reconstructions=eight_bits(reconstructions[[rows[pair] for pair in pairs]]),
            controls=None
            if control is None or beside is None
            else eight_bits(control[beside[pairs]]),
            prior=eight_bits(prior),
            labels=shown.labels.tolist(),
            names=shown.names,
            patients=shown.patients,
        )
        places = np.array(positions, dtype=np.int64)
        return cls(number, attack, known, scores.real.gallery, places, scores.each, pictures)


def by_exposure(each: EachImage) -> list[int]:
    """Return the truths that have a reconstruction, most exposed first.

    Those that were re-identified, but neither from the control nor by the starting picture, come
    before the others, then those whose recovered fraction exceeds the control's, or 0 where that is
    less, by most.
    """
    matched = (~each.real.ssim.isnan()).nonzero().flatten().tolist()
    return sorted(matched, key=lambda row: excess(each, row), reverse=True)


def excess(each: EachImage, row: int) -> tuple[bool, float]:
    """Return what the reconstruction of a truth gave away that control and prior did not.

    Returns:
        Whether it was re-identified by nothing else, and by how much its recovered fraction is
        greater than the control's and than 0; -inf where that fraction is undefined.
    """
    recovered, bar = float(each.real.recovered[row]), 0.0
    recognised = bool(each.real.rank[row] == 1) and not bool(each.prior.rank[row] == 1)
    if each.control is not None:
        recognised &= not bool(each.control.rank[row] == 1)
        bar = max(bar, float(torch.nan_to_num(each.control.recovered[row], nan=0.0)))
    return recognised, float("-inf") if np.isnan(recovered) else recovered - bar


def save_exposure(job_folder: Path, exposure: Exposure) -> Path:
    """Write an exposure, whole and for its owner alone; return the file.

    Raises:
        OSError: it cannot be written.
    """
    folder = job_folder / EXPOSURES
    folder.mkdir(mode=0o700, exist_ok=True)
    pictures = exposure.pictures
    about = {
        "schema": SCHEMA,
        "round": exposure.round,
        "attack": exposure.attack,
        "known": exposure.known,
        "gallery": exposure.gallery,
        "labels": list(pictures.labels),
        "names": pictures.names,
        "patients": pictures.patients,
    }
    arrays: dict[str, NDArray[Any]] = {
        "about": np.array(json.dumps(about)),
        "positions": exposure.positions,
        "rows": pictures.rows,
        "truths": pictures.truths,
        "reconstructions": pictures.reconstructions,
        "prior_picture": pictures.prior,
    }
    if pictures.controls is not None:
        arrays["controls"] = pictures.controls
    for role in ROLES:
        scores: ImageScores | None = getattr(exposure.each, role)
        if scores is not None:
            columns = torch.stack([scores.ssim, scores.recovered, scores.rank])
            arrays[role] = columns.float().numpy()
    file = folder / f"round-{exposure.round}-{exposure.attack}.npz"
    with whole_file(file) as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
    return file


def read_exposures(job_folder: Path) -> tuple[list[Exposure], int]:
    """Return a job's exposures by round and attack, and how many files cannot be read."""
    found, damaged = [], 0
    for file in sorted((job_folder / EXPOSURES).glob("round-*.npz")):
        try:
            with np.load(file, allow_pickle=False) as arrays:
                found.append(_exposure({name: arrays[name] for name in arrays.files}))
        except DAMAGE:
            damaged += 1
    return sorted(found, key=lambda exposure: (exposure.round, exposure.attack)), damaged


def _exposure(arrays: Mapping[str, NDArray[Any]]) -> Exposure:
    about = json.loads(str(arrays["about"]))
    if about["schema"] != SCHEMA:
        raise ValueError(f"exposures of schema {about['schema']} cannot be read")
    roles = {role: ImageScores(*torch.from_numpy(arrays[role])) for role in ROLES if role in arrays}
    return Exposure(
        round=about["round"],
        attack=about["attack"],
        known=about["known"],
        gallery=about["gallery"],
        positions=arrays["positions"],
        each=EachImage(roles["real"], roles.get("control"), roles["prior"]),
        pictures=Pictures(
            rows=arrays["rows"],
            truths=arrays["truths"],
            reconstructions=arrays["reconstructions"],
            controls=arrays.get("controls"),
            prior=arrays["prior_picture"],
            labels=about["labels"],
            names=about["names"],
            patients=about["patients"],
        ),
    )
