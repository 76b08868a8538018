"""What a site itself decides, in ``local/gradward.json``; no job can change any of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

Policy = TypeVar("Policy")


class SiteSettingsError(ValueError):
    """``local/gradward.json`` or the environment cannot be used; the message says which entry."""


@dataclass(frozen=True)
class ScoringPolicy:
    """What a site lets the audit ask of it.

    Attributes:
        enabled: False closes the scoring door: every request is refused.
        max_answers: answers given in one job, kept on disk across restarts. With the precision of
            an answer (:mod:`gradward.flare.precision`) it bounds what a job can draw.
        max_images: reconstructions that one request may hold: each is one more guess at an image.
        attacks: names of attacks that are not GradWard's own and are answered all the same.
    """

    enabled: bool = True
    max_answers: int = 30
    max_images: int = 128
    attacks: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check every entry."""
        _check_switches(self, "enabled")
        _check_counts(self, "max_answers", "max_images")
        named = isinstance(self.attacks, list | tuple) and all(
            # They name files at the site.
            isinstance(name, str) and name.isascii() and name.isidentifier()
            for name in self.attacks
        )
        if not named:
            raise SiteSettingsError(
                f"'attacks' must be a list of classes' names, got {self.attacks!r}"
            )


@dataclass(frozen=True)
class PerturbationPolicy:
    """A site's own limits of the perturbation, over all jobs.

    Attributes:
        required: True refuses to train wherever a job has no perturbation for this site.
        max_views: views made from one image; degraded ones are free.
        max_rate: nats told of one image; None is no limit.
        max_epsilon, max_delta: summed over all differentially private releases; None is no limit.
    """

    required: bool = False
    max_views: int = 1
    max_rate: float | None = None
    max_epsilon: float | None = None
    max_delta: float | None = None

    def __post_init__(self) -> None:
        """Check every entry."""
        _check_switches(self, "required")
        _check_counts(self, "max_views")
        for name in ("max_rate", "max_epsilon", "max_delta"):
            limit = getattr(self, name)
            if limit is None:
                continue
            if isinstance(limit, bool) or not isinstance(limit, int | float):
                raise SiteSettingsError(f"{name!r} must be a number or null, got {limit!r}")
            if not math.isfinite(limit) or limit < 0:
                raise SiteSettingsError(f"{name!r} must be finite and not negative, got {limit!r}")


@dataclass(frozen=True)
class GatePolicy:
    """What a site lets its leakage gate tell.

    Attributes:
        stream: whether its rounded scores are streamed to the server. They depend on the data:
            by default they stay in the site's private log.
    """

    stream: bool = False

    def __post_init__(self) -> None:
        """Check every entry."""
        _check_switches(self, "stream")


@dataclass(frozen=True)
class CertifiedPolicy:
    """Whether a site takes part with a certificate, and only so.

    Attributes:
        required: True carries out jobs under (epsilon, delta) alone, and closes all else that
            depends on the data: live scoring, the leakage gate, the exact number of steps.
        min_patients: held-out patients that must stand behind a metric on clean images.
    """

    required: bool = False
    min_patients: int = 50

    def __post_init__(self) -> None:
        """Check every entry."""
        _check_switches(self, "required")
        _check_counts(self, "min_patients")


@dataclass(frozen=True)
class Policies:
    """All that a site decides for itself; see the kinds."""

    scoring: ScoringPolicy
    perturbation: PerturbationPolicy
    gate: GatePolicy
    certified: CertifiedPolicy


def read_policies(settings: Mapping[str, Any]) -> Policies:
    """Read a site's policies; a certificate closes what it cannot cover, whatever else is set.

    Raises:
        SiteSettingsError: an entry that does not exist or has the wrong type.
    """
    scoring = read_policy(ScoringPolicy, "scoring", settings)
    gate = read_policy(GatePolicy, "gate", settings)
    certified = read_policy(CertifiedPolicy, "certified", settings)
    if certified.required:
        # A live score and a streamed verdict depend on the data.
        scoring, gate = replace(scoring, enabled=False), replace(gate, stream=False)
    perturbation = read_policy(PerturbationPolicy, "perturbation", settings)
    return Policies(scoring, perturbation, gate, certified)


def read_policy(kind: type[Policy], name: str, settings: Mapping[str, Any]) -> Policy:
    """Build one policy from the entry ``name`` of a site's settings.

    Raises:
        SiteSettingsError: an entry that does not exist or has the wrong type.
    """
    values = settings.get(name, {})
    known = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(values, dict) or not set(values) <= set(known):
        raise SiteSettingsError(f"{name!r} in local/gradward.json must be an object with {known}")
    try:
        return kind(**values)
    except SiteSettingsError as error:
        raise SiteSettingsError(f"{name!r} in local/gradward.json: {error}") from None


def _check_switches(policy: Any, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(policy, name), bool):
            raise SiteSettingsError(f"{name!r} must be true or false, got {getattr(policy, name)}")


def _check_counts(policy: Any, *names: str) -> None:
    for name in names:
        count = getattr(policy, name)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise SiteSettingsError(f"{name!r} must be an integer of at least 0, got {count!r}")
