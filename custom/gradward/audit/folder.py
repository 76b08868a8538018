"""The folder that an audit leaves: ``audit.json`` and pictures."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from torch import Tensor

from gradward.attacks import ATTACK_NAMES
from gradward.audit.attempts import AttackAudit
from gradward.audit.facts import AuditError
from gradward.audit.result import FILE_NAME, AuditResult
from gradward.report.pictures import save_picture, save_side_by_side

SIDE_BY_SIDE = "side-by-side.png"


def check_folder(folder: Path) -> None:
    """Make sure that ``folder`` can be written: it is new, empty, or of an earlier audit.

    Raises:
        AuditError: it holds something else, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise AuditError(f"{folder} is a file; name a folder for the result")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FILE_NAME).is_file():
        raise AuditError(f"{folder} holds something else than an audit; name another folder")
    _check_writable(folder)


def check_batch_folder(folder: Path) -> None:
    """Make sure that ``folder`` is new or empty: an earlier batch may have taken hours.

    Raises:
        AuditError: it is not, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise AuditError(f"{folder} is a file; name a folder for the results")
    if folder.is_dir() and any(folder.iterdir()):
        raise AuditError(f"{folder} is not empty; the results of several updates need a new folder")
    _check_writable(folder)


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        # Only trying tells: special folders and mounted ones do not keep to their rights.
        tempfile.TemporaryDirectory(dir=there).cleanup()
    except OSError as error:
        raise AuditError(
            f"{folder} cannot be written: {error.strerror}; name another folder for the result"
        ) from None


def save_audit(result: AuditResult, folder: Path) -> None:
    """Write ``audit.json`` and, for each attack that ran, a folder of pictures.

    In ``<attack>/`` are ``real-1.png``, ``control-1.png`` and so on as the network sees them, and
    ``side-by-side.png`` where there is a truth. They may show patients and are readable by this
    user alone. An earlier audit in the folder is replaced.

    Args:
        result: of :func:`gradward.audit.audit_update`.
        folder: made if it is not there.

    Raises:
        AuditError: as :func:`check_folder`.
        OSError: it cannot be written.
    """
    check_folder(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in {*ATTACK_NAMES, *(audit.attack for audit in result.attacks)}:
        # Pictures of an attack that was skipped this time would pass for this audit's.
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / FILE_NAME).write_text(result.to_json(), encoding="utf-8")
    if result.prior_image is not None:
        save_picture(folder / "prior.png", result.prior_image)
    for audit in result.attacks:
        for role, attempt in (("real", audit.real), ("control", audit.control)):
            if attempt is not None and attempt.images is not None:
                (folder / audit.attack).mkdir(mode=0o700, exist_ok=True)
                for number, image in enumerate(attempt.images, start=1):
                    save_picture(folder / audit.attack / f"{role}-{number}.png", image)
        if result.truths is not None and result.prior_image is not None:
            _beside(folder / audit.attack, audit, result.truths, result.prior_image)


def _beside(folder: Path, audit: AttackAudit, truths: Tensor, prior: Tensor) -> None:
    if audit.matched is None or audit.real.images is None:
        return
    rows, columns = audit.matched.assignment
    beside = audit.matched.control_beside
    control = None if audit.control is None else audit.control.images
    save_side_by_side(
        folder / SIDE_BY_SIDE,
        truths=truths[columns],
        prior=prior,
        reconstructions=audit.real.images[rows],
        control=None if control is None or beside is None else control[beside],
    )
