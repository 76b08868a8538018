"""Where captured updates wait for their attack: a folder only the server's user can read."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradward.attacks.spool import save_state
from gradward.data import DataError, PublicSet
from gradward.flare.experiment import Experiment
from gradward.flare.site import Site

PREFIX = "gradward-spool-"


def remove_orphans() -> None:
    """Remove this user's spools whose process is gone, as after a power failure."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not _is_running(int(owner)):
            # Another user's folder cannot be removed, and shall not be.
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@dataclass(frozen=True)
class CapturedUpdate:
    """What one site sent in one round; without its arrays once they are in the spool.

    ``canaries`` is the number of public images behind a canary update, as the site states it.
    """

    site: str
    round: int
    arrays: Mapping[str, Any]
    canaries: int | None = None


class AuditSpool:
    """Updates, global weights and public images on disk, for the attack workers.

    It lies outside the run folder, which NVFlare stores and hands out with the job's result. An
    update goes when its audit is done, a round's global weights with the last of its updates.
    """

    def __init__(self, experiment: Experiment, server: Site) -> None:
        """Make an empty folder.

        Args:
            experiment: names the public images.
            server: knows where they are.
        """
        remove_orphans()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._experiment = experiment
        self._server = server
        self._public: PublicSet | None = None
        self._public_lock = threading.Lock()
        self._latest: tuple[int, dict[str, np.ndarray]] | None = None

    @property
    def prior_file(self) -> Path:
        """``(C, H, W)`` float32 where attacks start."""
        return self.folder / "prior.npy"

    @property
    def control_file(self) -> Path:
        """Public images and labels that the wrong update is made of."""
        return self.folder / "control.npz"

    def global_file(self, number: int) -> Path:
        """Global weights that round ``number`` starts from."""
        return self.folder / f"global-{number}.npz"

    def entry(self, site: str, number: int) -> Path:
        """Folder of one update."""
        return self.folder / f"{number}-{site}"

    def put_update(self, update: CapturedUpdate) -> None:
        """Write an update to its entry."""
        entry = self.entry(update.site, update.round)
        entry.mkdir(mode=0o700)
        save_state(entry / "update.npz", update.arrays)

    def put_global(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a round's global weights."""
        save_state(self.global_file(number), arrays)

    def global_weights(self, number: int) -> dict[str, np.ndarray]:
        """Read a round's global weights; the orders of one round share the same arrays."""
        if self._latest is None or self._latest[0] != number:
            with np.load(self.global_file(number), allow_pickle=False) as arrays:
                self._latest = number, dict(arrays)
        return self._latest[1]

    def results(self, update: CapturedUpdate) -> dict[str, np.ndarray]:
        """Read the reconstructions a worker left, as ``<attack>/real`` and ``<attack>/control``."""
        file = self.entry(update.site, update.round) / "result.npz"
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)

    def public(self) -> PublicSet:
        """Load the public images once and put prior and control into the spool.

        Raises:
            DataError: they are not there, or not the declared ones; audits fail, training goes on.
        """
        with self._public_lock:
            if self._public is None:
                public = self._load_public()
                control = public.part("control")
                np.save(self.prior_file, public.prior_image.numpy())
                save_state(self.control_file, {"images": control.images, "labels": control.labels})
                self._public = public
            return self._public

    def forget_update(self, site: str, number: int) -> None:
        """Remove an update and its reconstructions."""
        shutil.rmtree(self.entry(site, number), ignore_errors=True)

    def forget_global(self, number: int) -> None:
        """Remove a round's global weights."""
        self.global_file(number).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _load_public(self) -> PublicSet:
        experiment = self._experiment
        public = experiment.load_public(self._server)
        if experiment.public_checksum not in (None, public.checksum):
            raise DataError(
                f"the public images of {public.name!r} on the server are not those that the job "
                "declares (their checksum differs)"
            )
        return public
