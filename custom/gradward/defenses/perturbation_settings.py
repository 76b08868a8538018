"""What a job or a hospital says about a perturbation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gradward.defenses.acceptance import Limits

GATED_MODES = ("learned", "uniform", "class-hiding")
MODES = (*GATED_MODES, "class", "dp-class")
SOURCES = ("site", "public")


@dataclass(frozen=True)
class PerturbationSettings:
    """A mode and its one knob: the rate in nats, or epsilon for the certified mode.

    Attributes:
        mode: ``"class"`` (fresh draws of the class, rate 0; the default, for it won on four of the
            five sets of the study), ``"learned"`` (gates by minimax), ``"uniform"`` (one gate for
            all dimensions), ``"class-hiding"`` (learned gates in a latent without classes, for
            tasks of four classes or more) or ``"dp-class"`` (fresh draws from statistics released
            under differential privacy).
        fitted_on: ``"site"`` or ``"public"`` images give autoencoder, class statistics and gates.
            What is fitted on the site's images does not hide who is among them. The default is the
            site, for ``dp-class`` public, the only one possible.
        rate: nats that one view tells of its image at most; of gated modes.
        epsilon: of the release of ``dp-class``, per patient.
        delta: likewise.
        max_linkage: the acceptance gate's limit on linkage, in [0, 1].
        min_mse: its limit on the attacker's error, over that of guessing the class mean.
        on_refusal: ``"refuse"`` or, when the gate is shut, go on in mode ``"class"``.
        min_class_images: images of each class that a fit on the site needs. Fewer than 100 make a
            class's statistics a portrait of its members: for studies on public data only.
        autoencoder_steps: optimiser steps.
        gate_steps: optimiser steps of the minimax.
        privacy: weight of the adversary in the minimax.

    Raises:
        TypeError, ValueError: with the offending value.
    """

    mode: str = "class"
    fitted_on: str | None = None
    rate: float = 2.0
    epsilon: float | None = None
    delta: float | None = None
    max_linkage: float = 0.35
    min_mse: float = 0.9
    on_refusal: str = "refuse"
    min_class_images: int = 100
    autoencoder_steps: int = 700
    gate_steps: int = 250
    privacy: float = 1.0

    def __post_init__(self) -> None:
        """Check every value and fill in ``fitted_on``."""
        if self.fitted_on is None:
            # The dataclass is frozen; this is its own construction.
            source = "public" if self.mode == "dp-class" else "site"
            object.__setattr__(self, "fitted_on", source)
        for name, known in (
            ("mode", MODES),
            ("fitted_on", SOURCES),
            ("on_refusal", ("refuse", "class")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        for name in ("rate", "max_linkage", "min_mse", "privacy"):
            _check_number(name, getattr(self, name))
        for name in ("max_linkage", "min_mse"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("min_class_images", "autoencoder_steps", "gate_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.mode in GATED_MODES and self.rate == 0:
            raise ValueError(f"rate must be above 0 in mode {self.mode!r}; 0 is mode 'class'")
        if self.mode == "dp-class":
            for name in ("epsilon", "delta"):
                _check_number(name, getattr(self, name))
                if not getattr(self, name) > 0:
                    raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
            if self.fitted_on != "public":
                raise ValueError("fitted_on must be 'public' in mode 'dp-class', got 'site'")
        elif self.epsilon is not None or self.delta is not None:
            raise ValueError(f"epsilon and delta belong to mode 'dp-class', got {self.mode!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PerturbationSettings:
        """Build settings from JSON values, refusing names that do not exist."""
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown perturbation settings {unknown}; known are {sorted(known)}")
        return cls(**values)

    @property
    def gated(self) -> bool:
        """Whether each image has a view of its own."""
        return self.mode in GATED_MODES

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of a fit, in the order in which its progress tells of them."""
        if self.mode == "dp-class":
            return ("features", "statistics")
        gates = ("gates",) if self.mode not in ("class", "uniform") else ()
        return ("autoencoder", *gates, *(("acceptance",) if self.gated else ()))

    @property
    def limits(self) -> Limits:
        """What the acceptance gate demands."""
        return Limits(self.max_linkage, self.min_mse)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be finite and not negative, got {value}")
