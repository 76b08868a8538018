"""Nothing but what the guard knows passes it: real results do, a thousand spoilt ones do not."""

from __future__ import annotations

import copy
import json
import logging
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DataKind, MetaKey, from_shareable
from nvflare.apis.filter import FilterChainType, FilterContextKey
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.apis.utils.task_utils import apply_filters
from nvflare.apis.workspace import Workspace
from nvflare.private.fed.app.fl_conf import create_privacy_manager

from gradward.defenses.noise import new_secret
from gradward.flare.guard import PerturbationGuard
from gradward.flare.protocol import SCORE_NAMES, SCORE_TASK, ScoreReply
from gradward.flare.receipt import MODE_META, PERTURBED_META, RECEIPT_META, Receipt, ReceiptError
from gradward.report.site_folder import GUARD

from .flare_desk import Desk, experiment


class GuardedDesk(Desk):
    """A desk with a guard at the door."""

    guard = PerturbationGuard()

    def reason(self, reply: Shareable, fl_ctx: FLContext) -> str:
        """Why the guard blocks this reply; fails if it does not."""
        assert_empty(self.guard.process(reply, fl_ctx))
        return str(self.journal(GUARD)[-1]["reason"])


def assert_empty(answer: Shareable) -> None:
    assert answer.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert answer == make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR), "it carries nothing"


@pytest.fixture
def desk(tmp_path: Path) -> GuardedDesk:
    return GuardedDesk(tmp_path, experiment())


# What passes --------------------------------------------------------------------------------------


def test_a_perturbed_update_passes_unchanged_and_leaves_its_receipt(desk: GuardedDesk) -> None:
    fl_ctx = desk.task("train")
    reply = desk.answer(fl_ctx)
    update = copy.deepcopy(from_shareable(reply).data)
    passed = from_shareable(desk.guard.process(reply, fl_ctx))
    assert passed.data_kind == DataKind.WEIGHT_DIFF and list(passed.data) == list(update)
    for name, value in update.items():
        assert passed.data[name].dtype == value.dtype
        np.testing.assert_array_equal(passed.data[name], value)
    assert passed.meta == {
        MetaKey.NUM_STEPS_CURRENT_ROUND: 2,
        MODE_META: "class",
        PERTURBED_META: 16,
    }
    assert desk.journal(GUARD)[-1]["verdict"] == "passed"
    assert desk.journal(GUARD)[-1]["version"] == "flat-1"


def test_a_guard_of_the_job_follows_one_of_the_site(desk: GuardedDesk) -> None:
    fl_ctx = desk.task("train")
    once = desk.guard.process(desk.answer(fl_ctx), fl_ctx)
    twice = PerturbationGuard().process(once, fl_ctx)
    assert twice.get_return_code() == ReturnCode.OK
    later = desk.task("train", "task-2")
    assert "no receipt" in desk.reason(once, later), "only within the same task"


def test_a_sites_own_policy_guards_a_job_that_never_mentions_it(desk: GuardedDesk) -> None:
    """As NVFlare builds it from ``privacy.json`` and applies it before the job's own filters."""
    policy = {
        "scopes": [
            {
                "name": "hospital",
                "task_result_filters": [{"path": "gradward.flare.guard.PerturbationGuard"}],
            }
        ],
        "default_scope": "hospital",
    }
    (desk.root / "startup").mkdir()
    (desk.root / "local" / "privacy.json").write_text(json.dumps(policy))
    manager = create_privacy_manager(Workspace(str(desk.root)), names_only=False)
    chains = {"train/out": [PerturbationGuard()]}
    codes = []
    for number, perturbed in enumerate((True, False)):
        fl_ctx = desk.task("train", f"task-{number}")
        fl_ctx.set_prop(FLContextKey.SCOPE_OBJECT, manager.get_scope(None), private=True)
        reply = desk.answer(fl_ctx, number, perturbed)
        filters = {} if number else chains
        passed = apply_filters("task_result_filters", reply, fl_ctx, filters, "train", "out")
        codes.append(passed.get_return_code())
    assert codes == [ReturnCode.OK, ReturnCode.TASK_RESULT_FILTER_ERROR]
    assert [entry["verdict"] for entry in desk.journal(GUARD)] == ["passed"] * 2 + ["blocked"]


def test_the_local_model_passes_with_the_receipt_of_its_round(desk: GuardedDesk) -> None:
    desk.answer(desk.task("train"), 3)
    fl_ctx = desk.task("submit_model", "task-2")
    passed = desk.guard.process(desk.answer(fl_ctx), fl_ctx)
    assert from_shareable(passed).data_kind == DataKind.WEIGHTS
    assert RECEIPT_META not in from_shareable(passed).meta
    assert desk.journal(GUARD)[-1]["round"] == 3


def test_metrics_scores_and_error_replies_pass(desk: GuardedDesk) -> None:
    fl_ctx = desk.task("validate")
    metrics = desk.answer(fl_ctx)
    passed = desk.guard.process(metrics, fl_ctx)
    assert from_shareable(passed).data == from_shareable(metrics).data
    fl_ctx = desk.task(SCORE_TASK)
    for reply in (score_reply(), ScoreReply("refused", "this site's policy closes scoring")):
        passed = desk.guard.process(reply.to_shareable(), fl_ctx)
        assert ScoreReply.from_shareable(passed) == reply
    for code in (ReturnCode.EXECUTION_EXCEPTION, ReturnCode.TASK_ABORTED):
        assert desk.guard.process(make_reply(code), desk.task("train")) == make_reply(code)


def test_buffers_may_be_withheld_only_where_that_is_configured(desk: GuardedDesk) -> None:
    fl_ctx = desk.task("train")
    dxo = from_shareable(desk.answer(fl_ctx))
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    dxo.data = {name: v for name, v in dxo.data.items() if not name.endswith(buffers)}
    assert "not those of this job's model" in desk.reason(dxo.to_shareable(), fl_ctx)
    desk.guard = PerturbationGuard(withheld_buffers=True)
    assert desk.guard.process(dxo.to_shareable(), fl_ctx).get_return_code() == ReturnCode.OK
    del dxo.data["fc.bias"]
    assert "not those of this job's model" in desk.reason(dxo.to_shareable(), fl_ctx)


def test_it_leaves_alone_what_is_no_result_of_a_guarded_site(desk: GuardedDesk) -> None:
    raw = make_reply(ReturnCode.OK)
    assert PerturbationGuard(sites=["site-1"]).process(raw, desk.task("train")) is raw
    on_server = desk.task("train")
    on_server.set_prop(FLContextKey.FILTER_DIRECTION, FilterKey.IN, private=True, sticky=False)
    assert desk.guard.process(raw, on_server) is raw
    of_data = PerturbationGuard()
    of_data.set_prop(FilterContextKey.CHAIN_TYPE, FilterChainType.TASK_DATA_CHAIN)
    assert of_data.process(raw, desk.task("train")) is raw


# What does not ------------------------------------------------------------------------------------


def test_an_undefended_update_is_blocked_and_the_reason_is_told(
    desk: GuardedDesk, caplog: pytest.LogCaptureFixture
) -> None:
    fl_ctx = desk.task("train")
    reply = desk.answer(fl_ctx, perturbed=False)
    assert reply.get_return_code() == ReturnCode.OK
    with caplog.at_level(logging.WARNING):
        assert "16 raw samples" in desk.reason(reply, fl_ctx)
    assert "16 raw samples" in caplog.text
    fl_ctx = desk.task("submit_model", "task-2")
    assert "raw samples" in desk.reason(desk.answer(fl_ctx), fl_ctx), "nor its local model"


def test_a_stale_receipt_is_blocked(desk: GuardedDesk) -> None:
    first = desk.answer(desk.task("train"))
    later = desk.task("train", "task-2")
    desk.answer(later, 1)
    assert "another task_id" in desk.reason(first, later)


def test_another_sites_receipt_is_blocked(desk: GuardedDesk, tmp_path: Path) -> None:
    other = Desk(tmp_path / "other", desk.job)
    foreign = from_shareable(other.answer(other.task("train"))).meta[RECEIPT_META]
    fl_ctx = desk.task("train")
    dxo = from_shareable(desk.answer(fl_ctx))
    dxo.meta[RECEIPT_META] = foreign
    assert "not signed by this site" in desk.reason(dxo.to_shareable(), fl_ctx)


def test_weights_in_place_of_metrics_are_blocked(desk: GuardedDesk) -> None:
    fl_ctx = desk.task("train")
    update = desk.answer(fl_ctx)
    for name in ("validate", SCORE_TASK):
        assert "not of kind" in desk.reason(copy.deepcopy(update), desk.task(name))
    assert "no rule" in desk.reason(update, desk.task("anything"))


def test_a_task_name_in_the_message_is_not_believed(desk: GuardedDesk) -> None:
    metrics = desk.answer(desk.task("validate"))
    metrics.set_header(ReservedHeaderKey.TASK_NAME, "validate")
    assert desk.reason(metrics, desk.task("train"))


def test_a_failure_of_the_guard_blocks(desk: GuardedDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    fl_ctx = desk.task("train")
    reply = desk.answer(fl_ctx)

    def explode(*args: object) -> None:
        raise RuntimeError("smith.png")

    monkeypatch.setattr("gradward.flare.guard.checked_state", explode)
    assert desk.reason(reply, fl_ctx) == "the guard failed with RuntimeError"


def test_a_full_disk_blocks(desk: GuardedDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    fl_ctx = desk.task("train")
    reply = desk.answer(fl_ctx)

    def full(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("gradward.flare.guard.note", full)
    assert_empty(desk.guard.process(reply, fl_ctx))


@pytest.mark.parametrize("secret_damage", [b"", b"short"])
def test_a_damaged_secret_blocks(desk: GuardedDesk, secret_damage: bytes) -> None:
    fl_ctx = desk.task("train")
    reply = desk.answer(fl_ctx)
    (desk.root / "gradward" / "secret").write_bytes(secret_damage)
    assert "SecretError" in desk.reason(reply, fl_ctx)


# A thousand ways to spoil a result ----------------------------------------------------------------


class Text(str):
    """A string with more than it shows."""


class Letter(Shareable):
    """A message of a kind of its own."""


class Picture(np.ndarray):
    """An array with room for attributes."""


def score_reply() -> ScoreReply:
    scores = dict.fromkeys(SCORE_NAMES, 0.5) | {"n_images": 4, "gallery": 100}
    scores |= {"rank": 1.5, "rdlv": None}
    return ScoreReply(
        "ok", real=scores, control=dict(scores), prior=dict(scores), membership="known"
    )


def spoil_tensor(value: np.ndarray, rng: random.Random) -> Any:
    """Return something else in place of one tensor."""
    changed = value.copy()
    flat = changed.reshape(-1)
    place = rng.randrange(flat.size)
    if np.issubdtype(value.dtype, np.floating):
        flat[place] = rng.choice(
            [np.nan, np.inf, -np.inf, np.nextafter(flat[place], np.float32(9)), -flat[place] - 1]
        )
    else:
        flat[place] += 1
    return rng.choice(
        [
            changed,
            value[None],
            np.stack([value, value]),
            value.astype(np.float16),
            value.astype(np.complex64),
            value.astype(object),
            value.astype(value.dtype.newbyteorder()),
            value.view(Picture),
            np.ma.masked_array(value),
            torch.from_numpy(value),
            value.tolist(),
            value.tobytes(),
            {"inner": value},
            None,
        ]
    )


Spoiler = Callable[[Shareable, random.Random], Any]


def spoil_content(message: Shareable, rng: random.Random) -> Any:
    content = message["DXO"]
    data, names = content["data"], list(content["data"])
    name, other = rng.sample(names, 2)
    action = rng.randrange(9)
    if action == 0:
        content["kind"] = rng.choice([*DataKind, "PICTURES", "", None, Text(content["kind"]) + "S"])
        return message if content["kind"] != DataKind.WEIGHT_DIFF else {}
    if action == 1:
        del data[name]
    elif action == 2:
        data[rng.choice(["extra", "", 7, None, Text(name)])] = rng.choice(
            [data.pop(name), np.zeros(3), "note", {"a": 1}]
        )
    elif action == 3:
        data[name], data[other] = data[other] + 1, data[name]
    elif action == 4:
        content["data"] = rng.choice([{}, None, OrderedDict(data), [*data.values()], "data"])
    elif action == 5:
        content[rng.choice(["more", 3, "DXO"])] = rng.choice(["x", None, data])
    elif action == 6:
        del content[rng.choice(["kind", "data", "meta"])]
    else:
        data[name] = spoil_tensor(data[name], rng)
    return message


def spoil_envelope(message: Shareable, rng: random.Random) -> Any:
    headers = message[ReservedHeaderKey.HEADERS]
    action = rng.randrange(6)
    if action == 0:
        headers[rng.choice(["note", ReservedHeaderKey.COOKIE_JAR, "x-name", 4, Text("a")])] = "x"
    elif action == 1:
        headers[ReservedHeaderKey.CONTENT_TYPE] = rng.choice(["PICKLE", None, 3, "dxo"])
    elif action == 2:
        codes = [ReturnCode.EXECUTION_EXCEPTION, "MY_CODE", 0, None, True, b"OK", Text("OK")]
        headers[ReservedHeaderKey.RC] = rng.choice(codes)
    elif action == 3:
        message[rng.choice(["image", "", 5, "dxo"])] = rng.choice([np.zeros((3, 32, 32)), "x", {}])
    elif action == 4:
        return rng.choice([dict(message), Letter(message), None, "OK", [message], {}])
    else:
        message[ReservedHeaderKey.HEADERS] = rng.choice([None, [], OrderedDict(headers), {}])
    return message


def spoil_meta(message: Shareable, rng: random.Random) -> Any:
    meta = message["DXO"]["meta"]
    action = rng.randrange(5)
    if action == 0:
        meta[rng.choice(["note", MetaKey.INITIAL_METRICS, 3, Text(RECEIPT_META)])] = "x"
        if rng.random() < 0.5:
            meta[MetaKey.FILTER_HISTORY] = ["SomeFilter"]
    elif action == 1:
        meta[MetaKey.NUM_STEPS_CURRENT_ROUND] = rng.choice([0, 1, 3, 2.0, True, "2", None, [2]])
    elif action == 2:
        meta[MODE_META] = rng.choice(["dp-class", "", None, Text("class"), 1])
    elif action == 3:
        meta[PERTURBED_META] = rng.choice([0, 17, 16.0, "16", None, True])
    else:
        message["DXO"]["meta"] = rng.choice([None, {}, [], OrderedDict(meta), "meta"])
    return message


def receipt_spoiler(secret: bytes) -> Spoiler:
    wrong: dict[str, list[Any]] = {
        "job": ["job-2", ""],
        "site": ["site-5", None],
        "task": ["validate", "submit_model"],
        "task_id": ["task-0", ""],
        "round": [1, -1, None, "0"],
        "model": ["0" * 64, ""],
        "mode": ["none"],
        "raw_samples": [1, 16, -1, None, 0.5],
        "perturbed_samples": [0, -3],
        "steps": [1, 3, None],
        "tensors": [{}, {"fc.bias": "0" * 64}],
    }

    def spoil(message: Shareable, rng: random.Random) -> Any:
        meta = message["DXO"]["meta"]
        text = meta[RECEIPT_META]
        receipt = Receipt.verify(text, secret)
        action = rng.randrange(5)
        if action == 0:
            place = rng.randrange(len(text))
            meta[RECEIPT_META] = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
        elif action == 1:
            name = rng.choice(list(wrong))
            meta[RECEIPT_META] = replace(receipt, **{name: rng.choice(wrong[name])}).sign(secret)
        elif action == 2:
            meta[RECEIPT_META] = receipt.sign(new_secret())
        elif action == 3:
            meta[RECEIPT_META] = rng.choice([None, "", "{}", "[]", 3, b"x", text[:-1], [text], {}])
        else:
            outer = json.loads(text)
            outer[rng.choice(["statement", "mac", "note"])] = rng.choice(["", "x", None, 1])
            meta[RECEIPT_META] = json.dumps(outer)
        return message

    return spoil


def test_none_of_a_thousand_spoilt_updates_passes(desk: GuardedDesk) -> None:
    fl_ctx = desk.task("train")
    good = desk.answer(fl_ctx)
    spoilers = [spoil_content, spoil_content, spoil_envelope, spoil_meta]
    spoilers += 2 * [receipt_spoiler(desk.secret)]
    rng = random.Random(0)
    for _ in range(1000):
        spoilt = rng.choice(spoilers)(copy.deepcopy(good), rng)
        assert_empty(desk.guard.process(spoilt, fl_ctx))
    assert desk.guard.process(good, fl_ctx).get_return_code() == ReturnCode.OK
    assert len(desk.journal(GUARD)) == 1001


@pytest.mark.parametrize("task", ["validate", SCORE_TASK])
def test_no_spoilt_metrics_or_scores_pass(desk: GuardedDesk, task: str) -> None:
    fl_ctx = desk.task(task)
    good = desk.answer(fl_ctx) if task == "validate" else score_reply().to_shareable()
    rng = random.Random(1)
    values = [1.5, -0.1, 1, True, "0.5", None, float("nan"), float("inf"), np.float64(0.5), [0.5]]
    rounded = [1 / 3, float("nan"), True, "0.5", np.float64(0.5), 10**9, 10**400, -1]
    for _ in range(200):
        spoilt = copy.deepcopy(good)
        content = spoilt["DXO"]
        if rng.random() < 0.3:
            spoilt = spoil_envelope(spoilt, rng)
        elif task == "validate":
            name = rng.choice([*content["data"], "auroc", 3])
            content["data"][name] = rng.choice(values)
        elif rng.random() < 0.5:
            scores = content["data"][rng.choice(["real", "control", "prior"])]
            scores[rng.choice([*SCORE_NAMES, "names"])] = rng.choice(rounded)
        else:
            field, value = rng.choice(
                [
                    ("status", "refused"),
                    ("status", "fine"),
                    ("reason", "x" * 301),
                    ("reason", "line\nbreak"),
                    ("reason", Text("x")),
                    ("real", None),
                    ("real", [0.1]),
                    ("protocol", 99),
                    ("images", np.zeros((1, 3, 32, 32), np.float32)),
                ]
            )
            content["data"][field] = value
        assert_empty(desk.guard.process(spoilt, fl_ctx))


def test_an_error_reply_may_carry_nothing(desk: GuardedDesk) -> None:
    fl_ctx = desk.task("train")
    loaded = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    loaded["image"] = np.zeros((3, 32, 32))
    assert "may carry no data" in desk.reason(loaded, fl_ctx)
    told = make_reply(ReturnCode.EXECUTION_EXCEPTION, {"why": "smith.png is broken"})
    assert "not on the list" in desk.reason(told, fl_ctx)


# Receipts -----------------------------------------------------------------------------------------


def test_a_receipt_survives_the_way_and_only_as_it_was_signed() -> None:
    secret = new_secret()
    receipt = Receipt("job", "site", "train", "id", 2, "m", "class", "v", 0, 8, 1, {"a": "b"})
    text = receipt.sign(secret)
    assert Receipt.verify(text, secret) == receipt
    with pytest.raises(ReceiptError, match="not signed"):
        Receipt.verify(text.replace('\\"raw_samples\\": 0', '\\"raw_samples\\": 1'), secret)
    with pytest.raises(ReceiptError, match="not signed"):
        Receipt.verify(text, new_secret())


@pytest.mark.parametrize(
    "arguments",
    [{"sites": "site-1"}, {"metrics": [3]}, {"withheld_buffers": "yes"}],
)
def test_arguments_are_checked(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        PerturbationGuard(**arguments)
