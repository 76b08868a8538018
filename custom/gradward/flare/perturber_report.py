"""What a site tells of its perturber: scalars for TensorBoard, progress for its own log."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

from gradward.defenses.perturbation import SitePerturber
from gradward.flare.rounds import write_private
from gradward.remaining import Remaining

DIGITS = 3
PROGRESS_SECONDS = 10.0
FIT_FILE = "fit.json"


def streamed_figures(perturber: SitePerturber) -> dict[str, float | None]:
    """Return the figures that are streamed under ``defense/``, rounded; None where there is none.

    ``rate`` in nats, ``clipped`` fraction of the images, ``linkage`` and ``mse`` of the fresh
    attacker (the latter over that of guessing the class mean), ``fit_seconds``.
    """
    report = perturber.report
    acceptance = report.get("acceptance", {})
    figures = {
        "rate": perturber.rate,
        "clipped": report.get("clipped"),
        "linkage": acceptance.get("linkage"),
        "mse": acceptance.get("relative_mse"),
        "fit_seconds": sum(report["fit_seconds"].values()),
    }
    return {
        name: None if value is None else round(value, DIGITS) for name, value in figures.items()
    }


class FitProgress:
    """Tells how far a fit is and how long it still takes, at home.

    In the site's log there is a line for each part and then every ten seconds, and a file in the
    site's private root has the latest while the fit lasts. ``gradward run`` reads that of its
    simulated sites. Nothing is sent: how long a fit takes depends on how many images there are.
    """

    def __init__(
        self, component: FLComponent, fl_ctx: FLContext, parts: Sequence[str], private: Path
    ) -> None:
        """Args: whose log, the context of the task, the fit's parts, the site's private root."""
        self._component = component
        self._fl_ctx = fl_ctx
        self._parts = parts
        self._file = private / FIT_FILE
        self._part = ""
        self._remaining = Remaining()
        self._next = 0.0

    def __enter__(self) -> FitProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.unlink(missing_ok=True)

    def __call__(self, part: str, share: float) -> None:
        """Note the share done of one part of the fit."""
        if part not in self._parts:
            return
        if part != self._part:
            self._part, self._remaining, self._next = part, Remaining(), 0.0
        left = self._remaining.words(share)
        number = self._parts.index(part) + 1
        words = f"part {number} of {len(self._parts)} ({part}), {share:.0%}{left}"
        if left:
            words += " in this part"
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            self._component.log_info(self._fl_ctx, f"fitting the perturber: {words}")
        write_private(self._file, json.dumps({"part": part, "words": words}))


def fits_under_way(private: Path) -> dict[str, dict[str, str]]:
    """Return what the sites below ``private`` tell of their fits, by site."""
    found = {}
    for file in sorted(private.glob(f"*/{FIT_FILE}")):
        # It may go, or be replaced, at any time.
        with suppress(OSError, ValueError):
            found[file.parent.name] = json.loads(file.read_text(encoding="utf-8"))
    return found
