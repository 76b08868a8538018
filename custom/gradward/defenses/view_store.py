"""The views a site has handed out: kept, entered in the ledger first, and only ever degraded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradward.data.images import ImageSet
from gradward.defenses.channel import GatedChannel, transmit
from gradward.defenses.ledger import PrivacyLedger
from gradward.defenses.noise import FrozenNoise
from gradward.defenses.rate import degrade_gate
from gradward.defenses.storage import StorageError


class ViewStore:
    """One frozen view ``w'`` of each image under one channel.

    The noise is a keyed function of channel and image, so the same picture under another name, in
    another epoch or in another job gets the same view. A class-wise channel whitens by the label:
    the same picture under another label is another view with other noise, which the ledger counts.

    Args:
        version: of the perturber; the same for the same channel, and only then.
        channel: undegraded.
        noise: keyed by the site's secret.
        ledger: of the site.
    """

    def __init__(
        self, version: str, channel: GatedChannel, noise: FrozenNoise, ledger: PrivacyLedger
    ) -> None:
        self._version, self._channel = version, channel
        self._noise, self._ledger = noise, ledger
        self._kept: dict[str, tuple[int, Tensor]] = {}
        self.degradations: list[float] = []

    @property
    def channel(self) -> GatedChannel:
        """What a view has gone through when it is handed out."""
        gate = self._channel.gate
        for c in self.degradations:
            gate = degrade_gate(gate, c)
        return GatedChannel(self._channel.latent, gate)

    def views(self, images: ImageSet) -> tuple[Tensor, float]:
        """Return the views ``(N, r)`` of ``images`` and the fraction that was clipped.

        Raises:
            BudgetExceeded: a view would be one too many of its image.
            LedgerError: the ledger cannot be used.
        """
        labels = images.labels.tolist()
        keys = [self._noise.key(picture) for picture in images.images]
        self._register(keys, labels)
        w, clipped = self._channel.whiten(images.images, images.labels)
        found = [
            self._view(key, label, coordinates, picture)
            for key, label, coordinates, picture in zip(keys, labels, w, images.images, strict=True)
        ]
        return torch.stack(found) if found else w, clipped

    def to_state(self) -> dict[str, Any]:
        """Return what is kept, as tensors and plain values."""
        return {
            "version": self._version,
            "degradations": list(self.degradations),
            "names": list(self._kept),
            "levels": [level for level, _ in self._kept.values()],
            "views": torch.stack([view for _, view in self._kept.values()])
            if self._kept
            else torch.zeros(0, len(self._channel.gate)),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`to_state` returned.

        Raises:
            StorageError: it is damaged, or belongs to another perturber.
        """
        try:
            fits = state["version"] == self._version
            self.degradations = [float(c) for c in state["degradations"]]
            self._kept = {
                name: (level, view)
                for name, level, view in zip(
                    state["names"], state["levels"], state["views"], strict=True
                )
            }
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise StorageError(
                "the stored views are damaged or belong to another perturber; restore both from "
                "one backup"
            )

    def _name(self, label: int, level: int) -> str:
        """Name a view for ledger and noise: version, class, and what it was degraded by.

        The factors are part of the name: views degraded by .5 and by .8 with the same noise would
        be two views of one image.
        """
        own = f"/class {label}" if self._channel.latent.conditional else ""
        return f"{self._version}{own}" + "".join(f"/by {c!r}" for c in self.degradations[:level])

    def _register(self, keys: Sequence[str], labels: Sequence[int]) -> None:
        level = len(self.degradations)
        rate = self.channel.rate
        groups: dict[tuple[str, str | None], list[str]] = {}
        for key, label in zip(keys, labels, strict=True):
            parent = self._handed_out(key, label, level) if level else None
            groups.setdefault((self._name(label, level), parent), []).append(key)
        for (name, parent), members in groups.items():
            self._ledger.register_views(members, name, rate, parent=parent)

    def _handed_out(self, key: str, label: int, level: int) -> str | None:
        """Name the registered view that this one is a degraded copy of.

        An image that comes new to a degraded perturber has none: it pays for the degraded view.
        """
        known = {view.view_id for view in self._ledger.views(key)}
        earlier = [self._name(label, before) for before in range(level)]
        return next((name for name in earlier if name in known), None)

    def _view(self, key: str, label: int, w: Tensor, picture: Tensor) -> Tensor:
        name = f"{key} {self._name(label, 0)}"
        if name in self._kept:
            level, view = self._kept[name]
        else:
            noise = self._noise.normal(self._name(label, 0), picture, w.shape)
            level, view = 0, self._channel.release(w, noise)
        while level < len(self.degradations):
            keep = torch.tensor(self.degradations[level])
            level += 1
            noise = self._noise.normal(self._name(label, level), picture, w.shape)
            view = transmit(view, keep, noise)
        self._kept[name] = (level, view)
        return view
