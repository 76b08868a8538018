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
from nvflare.apis.dxo import DXO, DataKind

from gradward.attacks.spool import load_state, save_state
from gradward.data import DataError, ImageSet, PublicSet
from gradward.flare.experiment import Experiment
from gradward.flare.site import Site
from gradward.flare.states import local_change, stated_steps

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

    Attributes:
        site, round: whose and of which round.
        arrays: tensors or arrays by name.
        is_whole_model: whether they are the trained weights and not their difference to the global
            ones.
        canaries: public images behind a canary update, as the site states it; None of a live one.
        steps: local steps as the site states them, see :func:`stated_steps`.
    """

    site: str
    round: int
    arrays: Mapping[str, Any]
    is_whole_model: bool = False
    canaries: int | None = None
    steps: int | None = None

    @classmethod
    def of_reply(cls, site: str, number: int, reply: DXO) -> CapturedUpdate:
        """Take a reply to the training task, its arrays by reference."""
        whole = reply.data_kind == DataKind.WEIGHTS
        return cls(site, number, dict(reply.data), whole, steps=stated_steps(reply))


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
    def public_file(self) -> Path:
        """Public images and labels that attacks may learn from; none trains the control."""
        return self.folder / "public.npz"

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
        """Write an update to its entry, as the difference to its round's global weights.

        Raises:
            OSError: it cannot be written, or the global weights are not here.
            TypeError: a value is of a type that numpy lacks.
        """
        before = load_state(self.global_file(update.round))
        change = local_change(update.arrays, before, is_whole_model=update.is_whole_model)
        entry = self.entry(update.site, update.round)
        entry.mkdir(mode=0o700)
        save_state(entry / "update.npz", change)

    def put_global(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a round's global weights."""
        save_state(self.global_file(number), arrays)

    def result(self, site: str, number: int, attack: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Read the reconstructions that a worker left of one attack: real and control.

        Raises:
            OSError, KeyError: there are none.
        """
        with np.load(self.entry(site, number) / "result.npz", allow_pickle=False) as arrays:
            name = f"{attack}/control"
            return arrays[f"{attack}/real"], arrays.get(name)

    def global_weights(self, number: int) -> dict[str, np.ndarray]:
        """Read a round's global weights; the orders of one round share the same arrays."""
        if self._latest is None or self._latest[0] != number:
            with np.load(self.global_file(number), allow_pickle=False) as arrays:
                self._latest = number, dict(arrays)
        return self._latest[1]

    def public(self) -> PublicSet:
        """Load the public images once and put prior and control into the spool.

        Raises:
            DataError: they are not there, or not the declared ones; audits fail, training goes on.
        """
        with self._public_lock:
            if self._public is None:
                public = self._load_public()
                np.save(self.prior_file, public.prior_image.numpy())
                _save_images(self.public_file, public.of_attacker)
                _save_images(self.control_file, public.part("control"))
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
                "declares (their checksum differs); install the same on both, or correct the job's "
                "'public_checksum'"
            )
        return public


def _save_images(file: Path, images: ImageSet) -> None:
    save_state(file, {"images": images.images, "labels": images.labels})
