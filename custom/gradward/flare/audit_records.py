"""What became of each attack, written into the job's leakage log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gradward.flare.audit_spool import CapturedUpdate
from gradward.flare.protocol import SCORE_NAMES, ScoreReply
from gradward.report.records import LeakageLog, LeakageRecord

# The number of images on record is the attack's: it is known also where nothing was scored.
SCORES_ON_RECORD = tuple(name for name in SCORE_NAMES if name != "n_images")


class AuditRecords:
    """Writes the records of one job, each once."""

    def __init__(
        self,
        file: LeakageLog,
        *,
        job: str,
        seed: int,
        subject: str,
        log: Callable[[str], None],
        told: Callable[[LeakageRecord], None],
    ) -> None:
        """Name what all records of the job have in common.

        Args:
            file: where they go.
            job, seed, subject: as :class:`~gradward.report.records.LeakageRecord`.
            log: takes a line for the server's log.
            told: called with each record that was written.
        """
        self._file = file
        self._job, self._seed, self._subject = job, seed, subject
        self._log = log
        self._told = told

    def missing(self, site: str, number: int, attacks: list[str]) -> set[str]:
        """Return the attacks on a site's update of a round that are not on record."""
        return {
            attack
            for attack in attacks
            if not self._file.knows(self._subject, site, number, attack, self._seed)
        }

    def write(
        self,
        site: str,
        number: int,
        attack: str,
        *,
        status: str,
        control: bool = False,
        **rest: Any,
    ) -> None:
        """Write one record; why an update could not be scored is in the server's log as well."""
        record = LeakageRecord(
            job=self._job,
            seed=self._seed,
            subject=self._subject,
            site=site,
            round=number,
            attack=attack,
            control=control,
            status=status,
            **rest,
        )
        if self._file.append(record):
            self._told(record)
        if status not in ("ok", "skipped") and not control:
            self._log(f"{site}, round {number}, {attack}: {status}: {rest.get('reason', '')}")

    def finish(
        self,
        update: CapturedUpdate,
        attack: str,
        real: Mapping[str, Any],
        control: Mapping[str, Any] | None,
        reply: ScoreReply | None,
        problem: str,
    ) -> None:
        """Write the records of one attack, real and control, whatever became of it.

        Args:
            update: that was attacked.
            attack: its name.
            real, control: what the worker says of the attack and of its control, if that ran.
            reply: the scores, or None and
            problem: the reason why there are none.
        """
        for result, is_control in ((real, False), (control, True)):
            if result is None:
                continue
            status, reason = result["status"], result["reason"]
            scores: Mapping[str, Any] | None = None
            if status == "ok":
                if reply is None:
                    status, reason = "unscored", problem
                else:
                    status, reason = reply.status, reply.reason
                    scores = reply.control if is_control else reply.real
            details: dict[str, Any] = {
                "n_images": result["n_images"],
                "canaries": update.canaries,
                "loss": result["loss"],
                "evals": result["evals"],
                "seconds": result["seconds"],
                "knowledge": result["knowledge"],
            }
            if scores is not None:
                details |= {name: scores[name] for name in SCORES_ON_RECORD}
            if reply is not None:
                details["membership"] = reply.membership
                if reply.prior is not None:
                    details["prior"] = reply.prior
            self.write(
                update.site,
                update.round,
                attack,
                status=status,
                reason=reason,
                control=is_control,
                **details,
            )
