"""An audit of one update or of several at the desk, without a federation."""

from gradward.audit.attempts import AttackAudit, Attempt, RestartOutcome
from gradward.audit.batch import audit_updates
from gradward.audit.facts import AuditError, AuditFacts
from gradward.audit.result import AuditResult, BestAttack
from gradward.audit.summary import AuditSummary, UpdateAudit
from gradward.audit.update import audit_update

__all__ = [
    "AttackAudit",
    "Attempt",
    "AuditError",
    "AuditFacts",
    "AuditResult",
    "AuditSummary",
    "BestAttack",
    "RestartOutcome",
    "UpdateAudit",
    "audit_update",
    "audit_updates",
]
