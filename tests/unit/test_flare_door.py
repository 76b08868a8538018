"""The scoring door and the messages that pass through it."""

from __future__ import annotations

import json
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gradward.flare.answer_log import AnswerLog
from gradward.flare.door import ScoringDoor, ScoringRefused
from gradward.flare.protocol import SCORE_NAMES, ScoreReply, ScoreRequest
from gradward.flare.rounds import write_private
from gradward.flare.site import ScoringPolicy
from gradward.flare.states import MessageError

SHAPE = (3, 16, 16)


def request(
    number: int = 0, attack: str = "batchnorm", seed: int = 0, **changes: object
) -> ScoreRequest:
    images = np.random.default_rng(seed).random((2, *SHAPE), dtype=np.float32)
    values = {
        "site": "site-1",
        "round": number,
        "attack": attack,
        "images": images,
        "control": images / 2,
        "public_checksum": "sha256:0",
    }
    return ScoreRequest(**(values | changes))


def test_each_round_and_attack_is_answered_once(tmp_path: Path) -> None:
    door = ScoringDoor(tmp_path, ScoringPolicy())
    door.admit(request())
    door.admit(request(attack="matching", seed=1))
    door.admit(request(number=1, seed=2))
    with pytest.raises(ScoringRefused, match="answered before"):
        door.admit(request(seed=3))


def test_equal_pictures_are_not_scored_twice_under_another_name(tmp_path: Path) -> None:
    door = ScoringDoor(tmp_path, ScoringPolicy())
    door.admit(request())
    with pytest.raises(ScoringRefused, match="same reconstruction"):
        door.admit(request(attack="other"))


def test_the_limit_survives_a_restart(tmp_path: Path) -> None:
    policy = ScoringPolicy(max_answers=2)
    ScoringDoor(tmp_path, policy).admit(request(0, seed=0))
    ScoringDoor(tmp_path, policy).admit(request(1, seed=1))
    with pytest.raises(ScoringRefused, match="at most 2"):
        ScoringDoor(tmp_path, policy).admit(request(2, seed=2))


def test_a_closed_door_and_a_damaged_memory_refuse(tmp_path: Path) -> None:
    with pytest.raises(ScoringRefused, match="policy"):
        ScoringDoor(tmp_path, ScoringPolicy(enabled=False)).admit(request())
    (tmp_path / "answers.json").write_text("{")
    with pytest.raises(ScoringRefused, match="damaged"):
        ScoringDoor(tmp_path, ScoringPolicy()).admit(request())


def test_a_request_may_hold_only_so_many_reconstructions(tmp_path: Path) -> None:
    door = ScoringDoor(tmp_path, ScoringPolicy(max_images=1))
    with pytest.raises(ScoringRefused, match="at most 1 reconstructions"):
        door.admit(request())
    assert not (tmp_path / "answers.json").exists(), "it does not count as an answer"


def test_requests_at_the_same_time_are_counted_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server can have tasks carried out side by side, by auxiliary messages."""
    policy = ScoringPolicy(max_answers=5)

    def write_slowly(file: Path, text: str) -> None:
        time.sleep(0.02)
        write_private(file, text)

    monkeypatch.setattr("gradward.flare.door.write_private", write_slowly)

    def ask(number: int) -> bool:
        try:
            ScoringDoor(tmp_path, policy).admit(request(number % 12, seed=number))
        except ScoringRefused:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(ask, range(48))) == 5
    assert len(json.loads((tmp_path / "answers.json").read_text())) == 5


def test_the_log_is_private_and_one_json_object_a_line(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path)
    log.answer({"asked_by": "server"}, {"real": scores(), "control": None, "prior": scores()})
    log.refusal({"asked_by": "server", "attack": "line\nbreak"}, "no such round")
    journal = tmp_path / "answers.log"
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    first, second = (json.loads(line) for line in journal.read_text().splitlines())
    assert first["status"] == "ok" and first["prior"]["ssim"] == 0.5 and first["control"] is None
    assert second["status"] == "refused" and second["reason"] == "no such round"
    assert {"time", "asked_by"} <= set(first) & set(second)


def test_a_log_that_is_full_counts_refusals_and_still_holds_every_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradward.flare.answer_log.MOST_BYTES", 2000)
    log = AnswerLog(tmp_path)
    for number in range(500):
        log.refusal({"round": number}, "no such round")
    log.answer({"round": 500}, {"real": scores()})
    lines = [json.loads(line) for line in (tmp_path / "answers.log").read_text().splitlines()]
    overflow = json.loads((tmp_path / "answers.overflow.json").read_text())
    assert len(lines) - 1 + overflow["refusals"] == 500
    assert overflow["last"]["round"] == 499 and lines[-1]["status"] == "ok"
    assert (tmp_path / "answers.log").stat().st_size < 4000


def test_request_survives_the_journey() -> None:
    sent = request()
    got = ScoreRequest.from_shareable(sent.to_shareable(), SHAPE)
    assert (got.site, got.round, got.attack) == ("site-1", 0, "batchnorm")
    np.testing.assert_array_equal(got.images, sent.images)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": np.zeros((2, 1, 16, 16), np.float32)}, "shape"),
        ({"images": np.zeros((0, *SHAPE), np.float32)}, "shape"),
        ({"images": np.zeros((2, *SHAPE))}, "float32"),
        ({"images": "pixels"}, "float32"),
        ({"images": np.full((2, *SHAPE), np.nan, np.float32)}, "range"),
        ({"images": np.full((2, *SHAPE), 1.5, np.float32)}, "range"),
        ({"control": np.zeros((1, *SHAPE), np.float32)}, "differ"),
        ({"round": "0"}, "names no round"),
        ({"round": True}, "names no round"),
        ({"round": -1}, "names no round"),
        ({"round": 10**300}, "names no round"),
        ({"attack": "climbing"}, "none of the attacks"),
        ({"attack": "../../startup/sub_start.sh"}, "none of the attacks"),
        ({"attack": ["batchnorm"]}, "none of the attacks"),
        ({"site": None}, "names no site"),
    ],
)
def test_foreign_requests_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(MessageError, match=words):
        ScoreRequest.from_shareable(request(**changes).to_shareable(), SHAPE)


def scores(**changes: object) -> dict[str, float | None]:
    return dict.fromkeys(SCORE_NAMES, 0.5) | changes


def test_reply_survives_the_journey() -> None:
    sent = ScoreReply(
        "ok", real=scores(), control=None, prior=scores(rdlv=None), membership="known"
    )
    assert ScoreReply.from_shareable(sent.to_shareable()) == sent


@pytest.mark.parametrize(
    "reply",
    [
        ScoreReply("perhaps"),
        ScoreReply("ok"),
        ScoreReply("ok", real=scores()),
        ScoreReply("ok", real=scores(), membership="2 of 3"),
        ScoreReply("refused", "closed", membership="unknown"),
        ScoreReply("ok", real=scores(picture=1.0), membership="known"),
        ScoreReply("ok", real={"ssim": 1.0}, membership="known"),
        ScoreReply("ok", real=scores(ssim=float("nan")), membership="known"),
        ScoreReply("ok", real=scores(ssim=[0.1] * 3072), membership="known"),
    ],
)
def test_only_agreed_scalars_pass(reply: ScoreReply) -> None:
    with pytest.raises(MessageError):
        ScoreReply.from_shareable(reply.to_shareable())
