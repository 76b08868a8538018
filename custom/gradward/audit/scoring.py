"""What the attacks came to, set beside the truth where that is known."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gradward.attacks import AttackResult
from gradward.audit.attempts import DIGITS, AttackAudit, Attempt, RestartOutcome
from gradward.audit.facts import AuditFacts
from gradward.audit.references import References
from gradward.audit.result import AuditResult
from gradward.metrics import PictureComparison, PictureScores, score_pictures


class Scorer:
    """Makes the result of an audit from those of its attacks.

    Args:
        truth: ``(m, C, H, W)`` in [0, 1]; None measures nothing.
        references: prior and public mean image.
    """

    def __init__(self, truth: Tensor | None, references: References):
        self._truth = truth
        self._references = references

    def result(
        self, facts: AuditFacts, real: Sequence[AttackResult], control: Sequence[AttackResult]
    ) -> AuditResult:
        """Return what the attacks came to, on the update and on its control."""
        controls = {result.attack: result for result in control}
        return AuditResult(
            facts=facts,
            attacks=tuple(self._attack(result, controls.get(result.attack)) for result in real),
            prior=self._alone(self._references.prior),
            mean_image=self._alone(self._references.mean),
            truths=self._truth,
            prior_image=self._references.prior,
        )

    def _attack(self, real: AttackResult, control: AttackResult | None) -> AttackAudit:
        found = self._compare(real.images, None if control is None else control.images)
        return AttackAudit(
            attack=real.attack,
            real=self._attempt(real, None if found is None else found.real),
            control=None
            if control is None
            else self._attempt(control, None if found is None else found.control),
            matched=found,
        )

    def _attempt(self, result: AttackResult, scores: PictureScores | None) -> Attempt:
        knowledge = dict(result.knowledge)
        if knowledge and self._references.prior_is_stand_in:
            knowledge["prior"] = "lacked"
        return Attempt(
            status=result.status,
            reason=result.reason,
            loss=result.loss,
            evaluations=result.evaluations,
            seconds=round(result.seconds, 3),
            knowledge=knowledge,
            labels=None if result.labels is None else tuple(result.labels.tolist()),
            restarts=tuple(
                RestartOutcome(restart.loss, self._recovered(restart.images))
                for restart in result.restarts
            ),
            scores=scores,
            images=result.images,
        )

    def _alone(self, picture: Tensor) -> PictureScores | None:
        if self._truth is None:
            return None
        found = self._compare(picture.expand_as(self._truth))
        return None if found is None else found.real

    def _recovered(self, images: Tensor) -> float | None:
        found = self._compare(images)
        return None if found is None else found.real.to_dict(DIGITS)["recovered"]

    def _compare(
        self, images: Tensor | None, control: Tensor | None = None
    ) -> PictureComparison | None:
        if images is None or self._truth is None:
            return None
        prior, mean = self._references.prior, self._references.mean
        return score_pictures(images, control, self._truth, prior, mean)
