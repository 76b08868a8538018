"""An audit of one update at the desk, without a federation."""

from gradward.audit.attempts import AttackAudit, Attempt, RestartOutcome
from gradward.audit.facts import AuditError, AuditFacts
from gradward.audit.result import AuditResult, BestAttack
from gradward.audit.update import audit_update

__all__ = [
    "AttackAudit",
    "Attempt",
    "AuditError",
    "AuditFacts",
    "AuditResult",
    "BestAttack",
    "RestartOutcome",
    "audit_update",
]
