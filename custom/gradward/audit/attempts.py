"""What one attack made of an update and of its control."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from torch import Tensor

from gradward.metrics.scores import Matched, PictureScores

DIGITS = 6


@dataclass(frozen=True)
class RestartOutcome:
    """One start of an attack: its lowest loss, and with a truth its recovered fraction."""

    loss: float
    recovered: float | None


@dataclass(frozen=True)
class Attempt:
    """What one attack made of one update, the client's or the control's.

    Attributes:
        status, reason, loss, evaluations, seconds, knowledge: as of
            :class:`gradward.attacks.AttackResult`.
        labels: that the attack used, given or inferred.
        restarts: one each start that came to something.
        scores: against the truth; None without.
        images: ``(n, C, H, W)`` in [0, 1]; not in the JSON.
    """

    status: Literal["ok", "skipped", "failed"]
    reason: str
    loss: float | None
    evaluations: int
    seconds: float
    knowledge: dict[str, str]
    labels: tuple[int, ...] | None
    restarts: tuple[RestartOutcome, ...]
    scores: PictureScores | None
    images: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def recovered(self) -> float | None:
        """The recovered fraction; None where there is none."""
        return None if self.scores is None else _number(self.scores.recovered)


@dataclass(frozen=True)
class AttackAudit:
    """One attack on the update and on its control.

    Attributes:
        attack: its name.
        real: what it made of the update.
        control: what it made of the control; None where it did not run on the update.
        matched: which pictures belong together; None without a truth; not in the JSON.
    """

    attack: str
    real: Attempt
    control: Attempt | None
    matched: Matched | None = field(default=None, compare=False, repr=False)

    @property
    def gain(self) -> float | None:
        """Recovered fraction over the control's, or over 0 where that is less; None without."""
        return gain_over(self.real.recovered, self.recovered_by_control)

    @property
    def recovered_by_control(self) -> float | None:
        """The control's recovered fraction; None where it has none."""
        return None if self.control is None else self.control.recovered


def attempt_to_dict(attempt: Attempt) -> dict[str, Any]:
    """Return JSON values, without the images."""
    values = {f.name: getattr(attempt, f.name) for f in fields(Attempt) if f.name != "images"}
    values["restarts"] = [asdict(restart) for restart in attempt.restarts]
    values["scores"] = attempt.scores and attempt.scores.to_dict(DIGITS)
    return values


def attempt_from_dict(values: Mapping[str, Any]) -> Attempt:
    """Read back what :func:`attempt_to_dict` made."""
    labels = values["labels"]
    return Attempt(
        **{
            **values,
            "labels": None if labels is None else tuple(labels),
            "restarts": tuple(RestartOutcome(**item) for item in values["restarts"]),
            "scores": scores_from_dict(values["scores"]),
        }
    )


def scores_from_dict(values: Mapping[str, Any] | None) -> PictureScores | None:
    """Read scores, if there are any."""
    return None if values is None else PictureScores.from_dict(values)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, DIGITS)


def gain_over(recovered: float | None, control: float | None) -> float | None:
    """Recovered fraction over the control's, or over 0 where that is less; None without."""
    # A control that wandered off the prior is no reason to call more a leak.
    if recovered is None or control is None:
        return None
    return round(recovered - max(control, 0.0), DIGITS)
