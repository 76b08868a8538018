"""The scoring door: what the audit may ask a site, counted on the site's disk.

A server could send chosen pictures and climb towards a patient's by the answers. One task holds
reconstruction and control and counts as one answer; each (round, attack) is answered once, equal
reconstructions are never scored twice, and a job gets no more than ``max_answers`` rounded answers
on ``max_images`` reconstructions each.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gradward.flare.answer_log import locked
from gradward.flare.policies import ScoringPolicy
from gradward.flare.protocol import ScoreRequest
from gradward.flare.rounds import write_private

LEDGER = "answers.json"


class ScoringRefused(Exception):
    """The site does not answer; the reason is fit to be told to the server."""


class ScoringDoor:
    """Decides over requests; its memory survives restarts."""

    def __init__(self, job_folder: Path, policy: ScoringPolicy) -> None:
        """Args: the site's private folder of this job, and the site's policy."""
        self._folder = job_folder
        self._policy = policy

    def require_open(self) -> None:
        """Let a request be read at all.

        Raises:
            ScoringRefused: the site's policy closes the door.
        """
        if not self._policy.enabled:
            raise ScoringRefused("this site's policy closes scoring")

    def admit(self, request: ScoreRequest) -> None:
        """Count the request as answered, before anything is computed for it.

        Raises:
            ScoringRefused: policy, a repeat, or the limit.
        """
        self.require_open()
        if len(request.images) > self._policy.max_images:
            raise ScoringRefused(
                f"this site scores at most {self._policy.max_images} reconstructions at a time"
            )
        digest = hashlib.sha256(request.images.tobytes()).hexdigest()
        with locked(self._folder):
            answers = self._answers()
            if len(answers) >= self._policy.max_answers:
                raise ScoringRefused(
                    f"this site gives at most {self._policy.max_answers} answers in a job"
                )
            for answer in answers:
                if (answer["round"], answer["attack"]) == (request.round, request.attack):
                    raise ScoringRefused("this round and attack were answered before")
                if answer["digest"] == digest:
                    raise ScoringRefused("the same reconstruction was scored before")
            answers.append({"round": request.round, "attack": request.attack, "digest": digest})
            write_private(self._folder / LEDGER, json.dumps(answers))

    def _answers(self) -> list[dict[str, Any]]:
        file = self._folder / LEDGER
        if not file.is_file():
            return []
        try:
            answers = json.loads(file.read_text(encoding="utf-8"))
            return [{key: entry[key] for key in ("round", "attack", "digest")} for entry in answers]
        except (ValueError, KeyError, TypeError):
            # Without its memory the door cannot count, so it stays shut.
            raise ScoringRefused("this site's record of answers is damaged") from None
