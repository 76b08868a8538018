"""The scoring door and the messages that pass through it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from gradward.flare.door import ScoringDoor, ScoringRefused
from gradward.flare.protocol import SCORE_NAMES, ScoreReply, ScoreRequest
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


def test_the_journal_is_private_and_one_json_object_a_line(tmp_path: Path) -> None:
    door = ScoringDoor(tmp_path, ScoringPolicy())
    door.note({"asked_by": "server", "status": "ok"})
    door.note({"asked_by": "server", "status": "refused"})
    journal = tmp_path / "answers.log"
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    statuses = [json.loads(line)["status"] for line in journal.read_text().splitlines()]
    assert statuses == ["ok", "refused"]


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
    ],
)
def test_foreign_requests_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(MessageError, match=words):
        ScoreRequest.from_shareable(request(**changes).to_shareable(), SHAPE)


def scores(**changes: object) -> dict[str, float | None]:
    return dict.fromkeys(SCORE_NAMES, 0.5) | changes


def test_reply_survives_the_journey() -> None:
    sent = ScoreReply("ok", real=scores(), control=None, prior=scores(rdlv=None))
    assert ScoreReply.from_shareable(sent.to_shareable()) == sent


@pytest.mark.parametrize(
    "reply",
    [
        ScoreReply("perhaps"),
        ScoreReply("ok"),
        ScoreReply("ok", real=scores(picture=1.0)),
        ScoreReply("ok", real={"ssim": 1.0}),
        ScoreReply("ok", real=scores(ssim=float("nan"))),
        ScoreReply("ok", real=scores(ssim=[0.1] * 3072)),
    ],
)
def test_only_agreed_scalars_pass(reply: ScoreReply) -> None:
    with pytest.raises(MessageError):
        ScoreReply.from_shareable(reply.to_shareable())
