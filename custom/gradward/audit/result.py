"""What an audit of one update found, beside everything that it must be read with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from gradward.audit.attempts import (
    DIGITS,
    AttackAudit,
    attempt_from_dict,
    attempt_to_dict,
    gain_over,
    scores_from_dict,
)
from gradward.audit.facts import AuditError, AuditFacts
from gradward.metrics.scores import PictureScores

SCHEMA = 1
FILE_NAME = "audit.json"
NOT_RECOVERED = "Not recovered by these attacks within this budget."
WITHOUT_TRUTH = (
    "Without the true images nothing is measured, and losses of different attacks do not compare: "
    "look at the pictures beside those of the control."
)
WHAT_COUNTS = (
    "Only what exceeds the control was leaked, and little recovered means not recovered by these "
    "attacks within this budget."
)


@dataclass(frozen=True)
class BestAttack:
    """The attack that recovered most, which only who has the truth can choose.

    Attributes:
        attack: its name.
        recovered: its recovered fraction.
        control: the greatest recovered fraction of all attacks on the control, which has had as
            many tries.
        gain: of the first over the second, or over 0 where that is less.
    """

    attack: str
    recovered: float
    control: float | None
    gain: float | None


@dataclass(frozen=True)
class AuditResult:
    """What all attacks came to.

    Attributes:
        facts: what the audit was made of.
        attacks: in the order in which they ran.
        prior: scores of the prior image itself; None without a truth, as the next.
        mean_image: scores of the public images' mean.
        truths, prior_image: ``(m, C, H, W)`` or None, and ``(C, H, W)``; not in the JSON.
    """

    facts: AuditFacts
    attacks: tuple[AttackAudit, ...]
    prior: PictureScores | None
    mean_image: PictureScores | None
    truths: Tensor | None = field(default=None, compare=False, repr=False)
    prior_image: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def best(self) -> BestAttack | None:
        """The attack that recovered most; None without a truth: losses do not compare."""
        found = [(a.real.recovered, a.attack) for a in self.attacks if a.real.recovered is not None]
        if not found:
            return None
        recovered, attack = max(found)
        tries = [a.recovered_by_control for a in self.attacks if a.real.status == "ok"]
        known = [value for value in tries if value is not None]
        # A control that had fewer tries than the update would be no control.
        control = max(known) if len(known) == len(tries) else None
        return BestAttack(attack, recovered, control, gain_over(recovered, control))

    @property
    def verdict(self) -> str:
        """The finding in one or two sentences, which never say "safe"."""
        if all(a.real.status != "ok" for a in self.attacks):
            return "No attack applied to this update. " + NOT_RECOVERED
        best = self.best
        if best is None:
            return WITHOUT_TRUTH
        if best.recovered <= max(best.control or 0.0, 0.0):
            return NOT_RECOVERED
        beside = "no control" if best.control is None else f"control {best.control:.2f}"
        return (
            f"{best.attack} recovered {best.recovered:.2f} of what the best guess without the "
            f"update leaves open ({beside}); it is the best of the attacks, chosen with the truth. "
            + WHAT_COUNTS
        )

    def to_json(self) -> str:
        """Return everything but the pictures."""
        best = self.best
        content = {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "best": None if best is None else asdict(best),
            "attacks": [
                {
                    "attack": audit.attack,
                    "gain": audit.gain,
                    "real": attempt_to_dict(audit.real),
                    "control": audit.control and attempt_to_dict(audit.control),
                }
                for audit in self.attacks
            ],
            "prior": self.prior and self.prior.to_dict(DIGITS),
            "mean_image": self.mean_image and self.mean_image.to_dict(DIGITS),
            "facts": asdict(self.facts),
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> AuditResult:
        """Read back what :meth:`to_json` wrote, without pictures.

        Raises:
            AuditError: it is something else, or of another version.
        """
        try:
            content = json.loads(text)
            if content["schema"] != SCHEMA:
                raise AuditError(f"the audit has schema {content['schema']!r}, {SCHEMA} is read")
            facts = content["facts"]
            for name in ("image_shape", "notes"):
                facts[name] = tuple(facts[name])
            return cls(
                facts=AuditFacts(**facts),
                attacks=tuple(
                    AttackAudit(
                        item["attack"],
                        attempt_from_dict(item["real"]),
                        item["control"] and attempt_from_dict(item["control"]),
                    )
                    for item in content["attacks"]
                ),
                prior=scores_from_dict(content["prior"]),
                mean_image=scores_from_dict(content["mean_image"]),
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise AuditError(f"this is no {FILE_NAME} of an audit: {error}") from None

    def save(self, folder: Path | str) -> None:
        """Write ``audit.json`` and the pictures of each attack; see :mod:`gradward.audit.folder`.

        Raises:
            AuditError, OSError: as :func:`gradward.audit.folder.save_audit`.
        """
        from gradward.audit.folder import save_audit

        save_audit(self, Path(folder))
