"""The site's own page: which of its images were shown, and what left. It never leaves itself.

It is built from the site's private folder of the job alone, so at the end of a run as well as by
hand long after it, and is the only page with pictures, file names and patients.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gradward.metrics.scores import ImageScores
from gradward.metrics.similarity import ssim
from gradward.report.exposed_images import (
    RECOVERED,
    ExposedImage,
    most_exposed,
    most_recovered,
)
from gradward.report.exposures import Exposure, read_exposures
from gradward.report.figures import distribution
from gradward.report.inline_pictures import BRIGHTEST, inline, inline_difference
from gradward.report.perturbed_pictures import PerturbedPictures, read_perturbed
from gradward.report.pictures import eight_bits
from gradward.report.plots import styled
from gradward.report.site_folder import (
    ANSWERS,
    GATE,
    GUARD,
    JOB,
    OVERFLOW,
    ROUNDS,
    SCALARS,
    STATEMENT,
    is_site_folder,
    page_of,
    read_log,
)
from gradward.report.site_luck import luck_of
from gradward.report.site_tables import (
    answers_table,
    gate_table,
    guard_table,
    requests_table,
    scalars_table,
)
from gradward.report.verdict import LUCK
from gradward.whole_files import whole_file

MOST_IMAGES = 24
# Of a log's latest entries; the log itself has all of them.
MOST_ROWS = 500
# Perturber modes whose pictures are draws of a class.
_OF_A_CLASS = ("class", "dp-class")


def build_site_page(job_folder: Path) -> Path:
    """Write ``report/index.html``, whole and for its owner alone, and return its path.

    Args:
        job_folder: the site's private folder of a job.

    Raises:
        ValueError: it is none.
        OSError: a log cannot be read, or the page cannot be written.
    """
    job_folder = job_folder.resolve()
    if not is_site_folder(job_folder):
        raise ValueError(f"{job_folder} is not a site's private folder of a job")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradward.report"), autoescape=True, trim_blocks=True
    )
    environment.filters["score"] = _score
    page = environment.get_template("site.html").render(_content(job_folder))
    target = page_of(job_folder)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    target.parent.chmod(0o700)
    with whole_file(target) as stream:
        # A file's name need not be UTF-8.
        stream.write(page.encode("utf-8", "backslashreplace"))
    return target


def _content(job_folder: Path) -> dict[str, Any]:
    exposures, damaged = read_exposures(job_folder)
    logs = {}
    for name in (ANSWERS, SCALARS, GUARD, GATE):
        entries, cut = read_log(job_folder / name)
        damaged += cut
        logs[name] = entries
    answers = logs[ANSWERS]
    exposed = most_exposed(exposures, MOST_IMAGES)
    perturbed = read_perturbed(job_folder)
    # Without a kit's "gradward" the private root bears the site's name.
    root = job_folder.parents[1]
    return {
        "site": root.parent.name if root.name == "gradward" else root.name,
        "job": job_folder.name,
        "job_name": _job_name(job_folder),
        "built": time.strftime("%Y-%m-%d %H:%M %z"),
        "run_kind": _run_kind(job_folder),
        "damaged": damaged,
        "exposed": exposed,
        "luck": luck_of(exposures),
        "rare": round(1 / LUCK),
        "distribution": _distribution(exposures),
        "images": [_card(image) for image in exposed.images],
        "known": all(exposure.known for exposure in exposures),
        "reconstructions": len(exposures),
        "recovered_from": RECOVERED,
        "brightest": BRIGHTEST,
        "left_out": exposed.scored - len(exposed.images),
        "unscored": _ranges(_trained(job_folder) - {exposure.round for exposure in exposures}),
        "refusals": _refusals(answers),
        "perturbed": perturbed and _pairs(perturbed),
        "of_a_class": bool(perturbed and perturbed.mode in _OF_A_CLASS),
        "requests": requests_table(answers),
        "answers": answers_table(answers),
        "overflow": _overflow(job_folder),
        "scalars": scalars_table(logs[SCALARS]),
        "guard": guard_table(logs[GUARD]),
        "gate": gate_table(logs[GATE]),
    }


def _distribution(exposures: Sequence[Exposure]) -> Markup | None:
    """Draw how far the images were recovered; None where no fraction is defined."""
    real, control = (most_recovered(exposures, role) for role in ("real", "control"))
    if not real:
        return None
    with styled():
        return distribution(real, control, RECOVERED)


def _card(image: ExposedImage) -> dict[str, Any]:
    """Return what is shown of one image."""
    worst, place = image.worst, image.place
    pictures = worst.pictures
    truth, found = pictures.truths[place], pictures.reconstructions[place]
    difference, mean = inline_difference(found, truth)
    shown = [
        ("True image", inline(truth)),
        ("Starting picture", inline(pictures.prior)),
        ("Reconstruction", inline(found)),
    ]
    if pictures.controls is not None:
        shown.append(("Control", inline(pictures.controls[place])))
    shown.append((f"Difference, mean {mean:.2f}", difference))
    return {
        "position": image.position,
        "label": pictures.labels[place],
        "name": pictures.names and pictures.names[place],
        "patient": pictures.patients and pictures.patients[place],
        "round": worst.round,
        "attack": worst.attack,
        "gallery": worst.gallery,
        "pictures": shown,
        "scores": [
            ("Update", _scores(worst.each.real, image.row), image.real),
            ("Control", _scores(worst.each.control, image.row), image.control),
            ("Starting picture", _scores(worst.each.prior, image.row), image.prior),
        ],
    }


def _scores(scores: ImageScores | None, row: int) -> tuple[float | None, ...]:
    if scores is None:
        return (None, None, None)
    return tuple(float(part[row]) for part in (scores.ssim, scores.recovered, scores.rank))


def _pairs(perturbed: PerturbedPictures) -> dict[str, Any]:
    alike = ssim(perturbed.pictures, perturbed.originals).tolist()
    return {
        "round": perturbed.round,
        "mode": perturbed.mode,
        "pairs": [
            {
                "position": position,
                "label": perturbed.labels[place],
                "name": perturbed.names and perturbed.names[place],
                "patient": perturbed.patients and perturbed.patients[place],
                "original": inline(eight_bits(perturbed.originals[place])),
                "picture": inline(eight_bits(perturbed.pictures[place])),
                "ssim": alike[place],
            }
            for place, position in enumerate(perturbed.positions)
        ],
    }


def _trained(job_folder: Path) -> set[int]:
    """Return the rounds of which the site sent an update."""
    stems = [file.stem for file in (job_folder / ROUNDS).glob("*.json")]
    return {int(stem) for stem in stems if stem.isdigit()}


def _refusals(answers: Iterable[Mapping[str, Any]]) -> list[str]:
    reasons = [str(entry.get("reason")) for entry in answers if entry.get("status") == "refused"]
    return list(dict.fromkeys(reasons))


def _overflow(job_folder: Path) -> int:
    try:
        return int(json.loads((job_folder / OVERFLOW).read_text(encoding="utf-8"))["refusals"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _job_name(job_folder: Path) -> str | None:
    try:
        name = json.loads((job_folder / JOB).read_text(encoding="utf-8"))["name"]
        return name if isinstance(name, str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run_kind(job_folder: Path) -> str | None:
    try:
        return str(json.loads((job_folder / STATEMENT).read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _ranges(numbers: Iterable[int]) -> str:
    """Write whole numbers shortly.

    >>> _ranges([3, 0, 1, 2, 7])
    '0 to 3, 7'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join(" to ".join(map(str, run)) for run in runs)


def _score(value: float | None, digits: int) -> str:
    # Adding 0 turns the -0.0 of a tiny negative value into 0.0.
    return "–" if value is None or value != value else f"{round(value, digits) + 0.0:.{digits}f}"
