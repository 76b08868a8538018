"""What a site tells of its perturber: scalars for TensorBoard, progress for its own log."""

from __future__ import annotations

import time

from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

from gradward.defenses.perturbation import SitePerturber

DIGITS = 3
PROGRESS_SECONDS = 10.0


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
    """Writes how far a fit is into the site's log, now and then."""

    def __init__(self, component: FLComponent, fl_ctx: FLContext) -> None:
        """Args: whose log, and the context of the task."""
        self._component = component
        self._fl_ctx = fl_ctx
        self._next = 0.0

    def __call__(self, part: str, share: float) -> None:
        """Log the share done of one part of the fit, unless the last line is only seconds old."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            self._component.log_info(self._fl_ctx, f"fitting the perturber: {part} {share:.0%}")
