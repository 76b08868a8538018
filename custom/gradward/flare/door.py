"""The scoring door: what the audit may ask a site, counted on the site's disk.

A server could send chosen pictures and climb towards a patient's by the answers. One task holds
reconstruction and control and counts as one answer; each (round, attack) is answered once, equal
pictures are never scored twice, and a job gets no more than ``max_answers`` rounded answers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradward.flare.protocol import ScoreRequest
from gradward.flare.rounds import write_private
from gradward.flare.site import ScoringPolicy

LEDGER = "answers.json"
JOURNAL = "answers.log"


class ScoringRefused(Exception):
    """The site does not answer; the reason is fit to be told to the server."""


class ScoringDoor:
    """Decides over requests and keeps the site's own log of answers and refusals."""

    def __init__(self, job_folder: Path, policy: ScoringPolicy) -> None:
        """Args: the site's private folder of this job, and the site's policy."""
        self._folder = job_folder
        self._policy = policy

    def admit(self, request: ScoreRequest) -> None:
        """Count the request as answered, before anything is computed for it.

        Raises:
            ScoringRefused: policy, a repeat, or the limit.
        """
        if not self._policy.enabled:
            raise ScoringRefused("this site's policy closes scoring")
        answers = self._answers()
        if len(answers) >= self._policy.max_answers:
            raise ScoringRefused(
                f"this site gives at most {self._policy.max_answers} answers in a job"
            )
        digest = hashlib.sha256(request.images.tobytes()).hexdigest()
        for answer in answers:
            if (answer["round"], answer["attack"]) == (request.round, request.attack):
                raise ScoringRefused("this round and attack were answered before")
            if answer["digest"] == digest:
                raise ScoringRefused("the same reconstruction was scored before")
        answers.append({"round": request.round, "attack": request.attack, "digest": digest})
        write_private(self._folder / LEDGER, json.dumps(answers))

    def note(self, entry: Mapping[str, Any]) -> None:
        """Append one line to the journal that the site's privacy officer reads."""
        journal = self._folder / JOURNAL
        journal.touch(mode=0o600, exist_ok=True)
        stamped = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **entry}
        with journal.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(stamped) + "\n")

    def _answers(self) -> list[dict[str, Any]]:
        file = self._folder / LEDGER
        if not file.is_file():
            return []
        try:
            return list(json.loads(file.read_text(encoding="utf-8")))
        except ValueError:
            # Without its memory the door cannot count, so it stays shut.
            raise ScoringRefused("this site's record of answers is damaged") from None
