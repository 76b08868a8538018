"""``leakage.jsonl``: one line per site, round and attack, real and control."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gradward.metrics.scores import Scores

SCHEMA = 2
# Schema 1 had no `membership`: every site knew which of its images made an update.
READABLE = (1, SCHEMA)
FILE_NAME = "leakage.jsonl"

LIVE, CANARY = SUBJECTS = ("live", "canary")
STATUSES = ("ok", "failed", "skipped", "refused", "unscored", "absent")

# Subject, site, round, attack, whether it is the control, and seed.
RecordKey = tuple[str, str, int, str, bool, int]


@dataclass(frozen=True)
class LeakageRecord:
    """What one attack on one update gave away.

    Attributes:
        job, seed, subject, site, round, attack: what was attacked; ``subject`` is ``"live"`` for
            updates of the training itself, ``"canary"`` for updates that the sites computed on
            public images beside it.
        control: True for the same attack on the wrong update.
        status: ``ok`` scored; ``failed`` attack or update unusable; ``skipped`` the attack does not
            apply; ``refused`` the site would not score; ``unscored`` it did not answer; ``absent``
            it sent no update.
        reason: why, where the status is not ``ok``.
        n_images ... gallery: the rounded scores, see ``docs/metrics.md``.
        canaries: different public images behind a canary update; fewer than the site's images
            where there are not more, which are then used over again.
        prior: what the prior alone scored, by the same names.
        loss, evals, seconds: of the attack.
        knowledge: what the attacker was given, inferred, or lacked.
        membership: ``known`` where the site scored against the images that made the update,
            ``unknown`` where it could not tell them from its others and took all; None where
            nothing was scored.
    """

    job: str
    seed: int
    site: str
    round: int
    attack: str
    control: bool
    status: str
    reason: str = ""
    subject: str = LIVE
    n_images: int | None = None
    ssim: float | None = None
    prior_ssim: float | None = None
    psnr: float | None = None
    mse: float | None = None
    rdlv: float | None = None
    recovered: float | None = None
    reid: float | None = None
    rank: float | None = None
    gallery: int | None = None
    leakage: float | None = None
    canaries: int | None = None
    prior: dict[str, float | None] = field(default_factory=dict)
    loss: float | None = None
    evals: int | None = None
    seconds: float | None = None
    knowledge: dict[str, str] = field(default_factory=dict)
    membership: str | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Refuse an unknown status or subject."""
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {STATUSES}, got {self.status!r}")
        if self.subject not in SUBJECTS:
            raise ValueError(f"subject must be one of {SUBJECTS}, got {self.subject!r}")

    @property
    def key(self) -> RecordKey:
        """What a record is unique by."""
        return (self.subject, self.site, self.round, self.attack, self.control, self.seed)

    def scores(self) -> dict[str, float | None]:
        """Return the scores by their names; all None where nothing was scored."""
        return {item.name: getattr(self, item.name) for item in fields(Scores)}


class LeakageLog:
    """Appends records to a file, each key once, from any thread."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, which may hold records of the same job from before a restart."""
        self.path = path
        self._lock = threading.Lock()
        self._keys = {record.key for record in read_records(path)} if path.is_file() else set()

    def append(self, record: LeakageRecord) -> bool:
        """Write the record unless its key is there already; return whether it was written."""
        with self._lock:
            if record.key in self._keys:
                return False
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(record)) + "\n")
            self._keys.add(record.key)
            return True

    def knows(self, subject: str, site: str, number: int, attack: str, seed: int) -> bool:
        """Tell whether the real attack of that round is on record."""
        with self._lock:
            return (subject, site, number, attack, False, seed) in self._keys


def read_records(path: Path) -> Iterator[LeakageRecord]:
    """Yield the records of a file.

    Raises:
        ValueError: a line is not a record of this schema; names the line.
    """
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield parse_record(json.loads(line))
            except (TypeError, ValueError) as error:
                raise ValueError(f"line {number} is no leakage record: {error}") from None


def parse_record(values: Any) -> LeakageRecord:
    """Check what a line of JSON holds.

    Raises:
        TypeError, ValueError: it is no record of a schema that this version reads.
    """
    if not isinstance(values, dict) or values.get("schema") not in READABLE:
        raise ValueError(f"its schema is none of {READABLE}")
    if values["schema"] == 1 and values.get("status") == "ok":
        values["membership"] = "known"
    return LeakageRecord(**values)
