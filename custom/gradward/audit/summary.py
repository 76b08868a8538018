"""What the audits of several updates found, one after the other."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gradward.audit.result import AuditResult
from gradward.whole_files import whole_file

SCHEMA = 1
FILE_NAME = "summary.json"


@dataclass(frozen=True)
class UpdateAudit:
    """What became of one of several updates.

    Attributes:
        name: of the update, and of its folder.
        status: ``"rejected"``: the update or its truth cannot be used; ``"failed"``: the audit
            broke.
        reason: of a status other than ``"ok"``; else empty.
        result: without pictures, which are in the folder; None where the status is not ``"ok"``.
    """

    name: str
    status: Literal["ok", "rejected", "failed"]
    reason: str = ""
    result: AuditResult | None = None


@dataclass(frozen=True)
class AuditSummary:
    """What was found in several updates.

    Attributes:
        updates: those that are finished, in the order in which they were given.
        total: how many were given.
    """

    updates: tuple[UpdateAudit, ...]
    total: int

    @property
    def complete(self) -> bool:
        """Whether every update was audited."""
        return [update.status for update in self.updates] == ["ok"] * self.total

    def to_json(self) -> str:
        """Return what there is to compare; all else is in the updates' own files."""
        content = {
            "schema": SCHEMA,
            "total": self.total,
            "finished": len(self.updates),
            "updates": [_to_dict(update) for update in self.updates],
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def save(self, folder: Path | str) -> None:
        """Write ``summary.json``, which appears whole.

        Raises:
            OSError: it cannot be written.
        """
        with whole_file(Path(folder) / FILE_NAME) as file:
            file.write(self.to_json().encode())


def _to_dict(update: UpdateAudit) -> dict[str, Any]:
    content: dict[str, Any] = {
        "update": update.name,
        "status": update.status,
        "reason": update.reason,
    }
    if update.result is None:
        return content
    best = update.result.best
    return {
        **content,
        "n_images": update.result.facts.n_images,
        "device": update.result.facts.device,
        "verdict": update.result.verdict,
        "best": None if best is None else asdict(best),
        "attacks": [
            {
                "attack": audit.attack,
                "status": audit.real.status,
                "loss": audit.real.loss,
                "recovered": audit.real.recovered,
                "control": audit.recovered_by_control,
                "gain": audit.gain,
            }
            for audit in update.result.attacks
        ],
    }
