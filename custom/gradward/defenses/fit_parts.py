"""A time budget and a memory for fits that run in parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradward.defenses.storage import load_private, save_private

# Share of the time that is left which a part may take.
TIME_SHARES = {"autoencoder": 0.5, "gates": 0.5}


class Clock:
    """Divides a time budget among the parts of a fit."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def share(self, part: str) -> float | None:
        """Seconds that ``part`` may take of what is left; at least one."""
        if self._end is None:
            return None
        return max(1.0, TIME_SHARES[part] * (self._end - time.monotonic()))


class PartCache:
    """Parts that are finished, with the seconds each took."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.seconds: dict[str, float] = {}

    def get(self, part: str, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return ``part`` from the cache, else build it and keep it."""
        file = None if self._folder is None else self._folder / f"{part}.pt"
        if file is not None and file.exists():
            kept = load_private(file)
        else:
            start = time.monotonic()
            content = build()
            kept = {"content": content, "seconds": time.monotonic() - start}
            if file is not None:
                save_private(file, kept)
        self.seconds[part] = round(kept["seconds"], 1)
        content = kept["content"]
        return content
