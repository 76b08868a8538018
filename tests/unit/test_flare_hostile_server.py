"""A server that asks a thousand times: what leaves is what the policy allows, and is on record."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.widgets.streaming import AnalyticsSender

from gradward.attacks.spec import ATTACK_NAMES
from gradward.data import load_public_set, load_split
from gradward.flare.precision import COUNTS, GRIDS, bits_of_an_answer, is_coarse
from gradward.flare.protocol import PROTOCOL, SCORE_NAMES, SCORE_TASK, ScoreReply
from gradward.flare.rounds import RoundRecord, remember_round
from gradward.flare.scorer import LeakageScorer
from gradward.flare.site import ScoringPolicy

from .fake_engine import context
from .flare_desk import experiment

SIZE: dict[str, Any] = {"image_size": (32, 32), "channels": 3}
ROUNDS = 12
REQUESTS = 1000


class Listener(AnalyticsSender):
    """Keeps what is streamed."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, float, int]] = []

    def add(self, tag: str, value: Any, data_type: Any, global_step: int, **more: Any) -> None:
        self.heard.append((tag, value, global_step))


class Hospital:
    """A site of one image that trained in twelve rounds, and its scorer."""

    def __init__(self, root: Path) -> None:
        self.private = root / "gradward"
        self.folder = self.private / "jobs" / "job-1"
        self.local = root / "local"
        self.listener = Listener()
        components = {"experiment": experiment(), "analytics_sender": self.listener}
        self.fl_ctx: FLContext = context(root, components)
        self.fl_ctx.set_prop(FLContextKey.TASK_NAME, SCORE_TASK, private=True, sticky=False)
        self.folder.mkdir(parents=True)
        for number in range(ROUNDS):
            remember_round(self.folder, RoundRecord(number, [0], 1))
        self.truth = load_split(
            {"format": "embedded"}, "training", site="site-1", **SIZE
        ).images.numpy()
        self.checksum = load_public_set({"format": "embedded"}, name="histology", **SIZE).checksum
        self.scorer = LeakageScorer()

    def settings(self, **values: Any) -> None:
        self.local.mkdir(exist_ok=True)
        (self.local / "gradward.json").write_text(json.dumps(values))

    def ask(self, message: Shareable) -> ScoreReply:
        reply = self.scorer.execute(SCORE_TASK, message, self.fl_ctx, Signal())
        return ScoreReply.from_shareable(reply)

    def request(self, images: Any, **changes: Any) -> Shareable:
        values = {
            "protocol": PROTOCOL,
            "site": "site-1",
            "round": 0,
            "attack": "batchnorm",
            "images": images,
            "control": images,
            "public_checksum": self.checksum,
        }
        return DXO(DataKind.APP_DEFINED, data=values | changes).to_shareable()

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "answers.log").read_text().splitlines()]

    def bytes_on_disk(self) -> int:
        return sum(file.stat().st_size for file in self.private.rglob("*") if file.is_file())


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def hostile_requests(hospital: Hospital) -> Iterator[Shareable]:
    """Climb by small changes, and try everything else in between."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    climbing = noise.random((1, 3, 32, 32), dtype=np.float32)
    for number in range(REQUESTS):
        climbing = (climbing + 1e-4 * noise.standard_normal(climbing.shape)).clip(0, 1)
        picture = climbing.astype(np.float32)
        known = {"round": rng.randrange(ROUNDS), "attack": rng.choice(ATTACK_NAMES)}
        trick = rng.randrange(12)
        if trick < 5:
            yield hospital.request(picture, **known)
        elif trick == 5:
            yield hospital.request(picture, **known, site="site-2")
        elif trick == 6:
            names = [f"attack-{number}", "../../../secret", "batchnorm ", "x" * 10**6, "a\nb\0"]
            yield hospital.request(picture, round=0, attack=rng.choice(names))
        elif trick == 7:
            never = [ROUNDS + number, -1, 10**400, 0.0, "0", None, True]
            yield hospital.request(picture, round=rng.choice(never))
        elif trick == 8:
            shapes = [(1, 3, 32, 31), (3, 32, 32), (0, 3, 32, 32), (1, 1, 32, 32), (1,) * 32]
            yield hospital.request(np.zeros(rng.choice(shapes), np.float32), **known)
        elif trick == 9:
            spoilt = picture.copy()
            spoilt[0, 0, 0, 0] = rng.choice([np.nan, np.inf, -0.1, 1.1])
            yield hospital.request(spoilt, **known)
        elif trick == 10:
            yield hospital.request(np.repeat(picture, 2000, axis=0), **known)
        else:
            yield rng.choice(
                [
                    Shareable(),
                    hospital.request("pixels", **known),
                    hospital.request(picture.tolist(), **known),
                    hospital.request(picture, **known, protocol=99),
                    hospital.request(picture, **known, gift=picture),
                    hospital.request(picture, **known, public_checksum="sha256:other"),
                    DXO(DataKind.WEIGHTS, data={"w": picture}).to_shareable(),
                ]
            )


def test_a_thousand_questions(hospital: Hospital, caplog: pytest.LogCaptureFixture) -> None:
    policy = ScoringPolicy()
    replies = [hospital.ask(message) for message in hostile_requests(hospital)]
    answers = [reply for reply in replies if reply.status == "ok"]
    assert len(answers) == policy.max_answers, "the server exhausts what it is granted, no more"

    scalars = [
        (name, value)
        for reply in answers
        for scores in (reply.real, reply.control, reply.prior)
        for name, value in (scores or {}).items()
    ]
    assert len(scalars) == 3 * len(SCORE_NAMES) * policy.max_answers
    assert all(is_coarse(name, value) for name, value in scalars)
    assert set(hospital.listener.heard) <= {
        (f"leakage/{entry['attack']}{label}/{name}", float(value), entry["round"])
        for entry in hospital.log()
        if entry["status"] == "ok"
        for label, scores in (("", entry["real"]), ("/control", entry["control"]))
        for name, value in scores.items()
        if value is not None
    }, "streamed is only what an answer told, and the log holds"

    log = hospital.log()
    assert len(log) == REQUESTS
    assert [entry["status"] for entry in log] == [reply.status for reply in replies]
    assert all(entry["asked_by"] == "server" and entry["time"] for entry in log)
    told = [(entry["real"], entry["control"], entry["prior"]) for entry in log if "real" in entry]
    assert told == [(reply.real, reply.control, reply.prior) for reply in answers]
    assert all(entry["reason"] == reply.reason for entry, reply in zip(log, replies, strict=True))
    assert max(len(json.dumps(entry)) for entry in log if entry["status"] == "refused") < 1000

    pictures = list((hospital.folder / "pictures").iterdir())
    assert len(pictures) == policy.max_answers
    assert hospital.bytes_on_disk() < 5 * 2**20
    outside = [p for p in hospital.private.parent.rglob("*") if hospital.private not in p.parents]
    assert {path.name for path in outside} <= {"gradward", "local"}, "no file was placed elsewhere"
    assert "secret" not in caplog.text and len(caplog.text) < REQUESTS * 1000


def test_nothing_is_computed_for_a_question_that_is_refused(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So neither time nor memory is spent on, say, ten thousand pictures."""
    computed: list[int] = []

    def count(images: torch.Tensor, *rest: Any, **named: Any) -> None:
        computed.append(len(images))
        raise RuntimeError("smith.png")

    monkeypatch.setattr("gradward.flare.scorer.score_reconstructions", count)
    replies = [hospital.ask(message) for message in hostile_requests(hospital)]
    assert len(computed) == ScoringPolicy().max_answers and set(computed) == {1}
    assert {reply.status for reply in replies} == {"refused"}
    assert not any("smith" in reply.reason for reply in replies)
    assert (hospital.folder / "errors.log").stat().st_size < 2 * 2**20


def test_the_limit_is_the_sites_and_survives_a_restart(hospital: Hospital) -> None:
    hospital.settings(scoring={"max_answers": 3})
    rng = np.random.default_rng(3)
    statuses = []
    for number in range(8):
        hospital.scorer = LeakageScorer()
        picture = rng.random((1, 3, 32, 32), dtype=np.float32)
        statuses.append(hospital.ask(hospital.request(picture, round=number)).status)
    assert statuses == ["ok"] * 3 + ["refused"] * 5


def test_bad_settings_refuse_and_the_refusal_is_on_record(hospital: Hospital) -> None:
    hospital.settings(scoring={"max_answers": "many"})
    assert hospital.ask(hospital.request(hospital.truth, round=4)).status == "refused"
    (entry,) = hospital.log()
    assert (entry["status"], entry["round"], entry["attack"]) == ("refused", 4, "batchnorm")
    assert "max_answers" in entry["reason"]


def test_an_answer_that_cannot_be_put_on_record_does_not_leave(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("gradward.flare.answer_log.note", full)
    reply = hospital.ask(hospital.request(hospital.truth))
    assert reply.status == "refused" and reply.real is None and not hospital.listener.heard
    monkeypatch.undo()
    assert hospital.ask(hospital.request(hospital.truth)).status == "refused", "it was counted"


def test_who_asked_and_who_submitted_the_job_are_on_record(hospital: Hospital) -> None:
    hospital.fl_ctx.set_prop(
        FLContextKey.JOB_META, {"submitter_name": "lead@hospital.org"}, private=True, sticky=False
    )
    hospital.ask(hospital.request(hospital.truth))
    (entry,) = hospital.log()
    assert (entry["asked_by"], entry["submitted_by"]) == ("server", "lead@hospital.org")
    assert entry["asked_images"] == entry["asked_control"] == "float32 (1, 3, 32, 32)"
    assert entry["real"]["recovered"] == 1.0 and entry["prior"]["recovered"] < 0.5


def test_bits_are_counted_from_the_values_that_a_score_can_take() -> None:
    """Independently of the grids' own arithmetic: every value there is, written out."""
    bits = 0.0
    for name in SCORE_NAMES:
        if name in COUNTS:
            continue
        grid = GRIDS[name]
        values = {grid.nearest(v) for v in np.linspace(grid.least - 1, grid.most + 1, 400_001)}
        assert all(is_coarse(name, value) for value in values)
        bits += math.log2(len(values) + 1)
    assert bits_of_an_answer(1) == pytest.approx(3 * bits)


def test_the_threat_model_states_the_bits_of_the_default_policy() -> None:
    from gradward.flare.precision import bits_of_a_job

    policy = ScoringPolicy()
    text = (Path(__file__).parents[2] / "docs" / "threat-model.md").read_text()
    one = math.ceil(bits_of_an_answer(policy.max_images))
    job = math.ceil(bits_of_a_job(policy.max_answers, policy.max_images))
    assert f"{one} bits" in text and f"{job} bits" in text
    assert f"{policy.max_answers} answers" in text
