"""What the auditor makes of a workflow's events, ours and somebody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from gradward.flare.auditor import InversionAuditor
from gradward.flare.experiment import Experiment
from gradward.report.records import read_records
from gradward.report.status import not_finished, read_status

from .fake_engine import FakeEngine, context
from .test_flare_audit_run import FAKE_ATTACK, AnsweringWorkflow, wait_for

SENT = {"weight": np.array([1.0, 2.0, 3.0], np.float32)}


class ServerEngine(FakeEngine):
    """A server with two sites."""

    def get_clients(self) -> list[Any]:
        return [SimpleNamespace(name="site-2"), SimpleNamespace(name="site-1")]

    def get_workspace(self) -> Any:
        workspace = super().get_workspace()
        workspace.get_app_custom_dir = lambda job: str(self.root / "custom")
        return workspace

    @contextmanager
    def new_context(self) -> Iterator[FLContext]:
        yield FLContext()


class Auditor(InversionAuditor):
    """With a worker that answers at once, from a module of the job's own."""

    worker_module = "fake_attack"


class Server:
    """Fires the events of one job as NVFlare's workflows do."""

    def __init__(self, root: Path, **changes: Any) -> None:
        (root / "custom").mkdir()
        (root / "custom" / "fake_attack.py").write_text(FAKE_ATTACK)
        (root / "job-1").mkdir()
        self.root = root
        self.auditor = Auditor([{"name": "batchnorm"}], {"evaluations": 5}, **changes)
        self.experiment = Experiment("bn_cnn", "histology", [32, 32], 3, 2)
        self.fire(EventType.START_RUN)

    def context(self, **props: Any) -> FLContext:
        fl_ctx = context(self.root, {}, "server")
        engine = ServerEngine(self.root, {"experiment": self.experiment})
        for key, value in {ReservedKey.ENGINE: engine, **props}.items():
            fl_ctx.set_prop(key, value, private=True, sticky=False)
        return fl_ctx

    def fire(self, event: str, **props: Any) -> None:
        self.auditor.handle_event(event, self.context(**props))

    def start_round(self, number: int, kind: DataKind = DataKind.WEIGHTS) -> None:
        current = {AppConstants.CURRENT_ROUND: number, AppConstants.NUM_ROUNDS: 2}
        self.fire(AppEventType.ROUND_STARTED, **current)
        weights = {name: value.copy() for name, value in SENT.items()}
        task = DXO(kind, data=weights).to_shareable()
        task.set_header(AppConstants.CURRENT_ROUND, number)
        for _ in ("site-1", "site-2"):
            self.fire(AppEventType.BEFORE_TRAIN_TASK, **{AppConstants.TRAIN_SHAREABLE: task})
        # Aggregation works in place: what is kept must be a copy.
        weights["weight"] += 100

    def receive(
        self, number: int, data: dict[str, Any], kind: DataKind, site: str, **meta: Any
    ) -> None:
        result: Shareable = DXO(kind, data=data, meta=meta).to_shareable()
        result.add_cookie(AppConstants.CONTRIBUTION_ROUND, number)
        fl_ctx = self.context(**{AppConstants.TRAINING_RESULT: result})
        peer = FLContext()
        peer.set_prop(ReservedKey.IDENTITY_NAME, site, private=False)
        fl_ctx.set_peer_context(peer)
        self.auditor.handle_event(AppEventType.AFTER_CONTRIBUTION_ACCEPT, fl_ctx)

    def drain(self) -> None:
        fl_ctx = self.context()
        self.auditor.bind(AnsweringWorkflow(), fl_ctx)
        assert self.auditor.drain(60, Signal(), fl_ctx) == 0

    def statuses(self) -> set[tuple[str, int, str]]:
        records = read_records(self.root / "job-1" / "leakage.jsonl")
        return {(r.site, r.round, r.status) for r in records if not r.control}

    @property
    def spool(self) -> Path:
        assert self.auditor._run is not None
        return self.auditor._run._spool.folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.fire(EventType.END_RUN)


def test_rounds_that_nobody_ends_are_closed_by_the_next_and_by_the_drain(server: Server) -> None:
    """NVFlare's FedAvg fires no ROUND_DONE."""
    for number in (0, 1):
        server.start_round(number)
        server.receive(number, {"weight": SENT["weight"] + 1}, DataKind.WEIGHTS, "site-1")
    server.drain()
    assert server.statuses() == {
        ("site-1", 0, "ok"),
        ("site-1", 1, "ok"),
        ("site-2", 0, "absent"),
        ("site-2", 1, "absent"),
    }
    assert read_status(server.root / "job-1")["sites"] == 2
    assert not_finished(server.root / "job-1") is None, "the drain's page has everything"


@pytest.mark.parametrize("kind", [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF])
def test_both_kinds_of_reply_become_the_change_to_what_was_sent(
    server: Server, kind: DataKind
) -> None:
    (server.spool / "hang").touch()
    server.start_round(0)
    change = np.array([0.5, 0.0, -1.0], np.float32)
    sent = change if kind == DataKind.WEIGHT_DIFF else SENT["weight"] + change
    server.receive(0, {"weight": sent}, kind, "site-1")
    file = server.spool / "0-site-1" / "update.npz"
    wait_for(file.exists)
    with np.load(file) as update:
        np.testing.assert_array_equal(update["weight"], change)


@pytest.mark.parametrize(
    ("stated", "taken"),
    [
        (None, None),
        (12, 12),
        (12.0, 12),
        (np.float32(3), 3),
        *((lie, 0) for lie in (0, -4, 2.5, True, float("nan"), float("inf"), 10**400, "12", [1])),
    ],
)
def test_the_attack_is_told_the_steps_that_a_site_states(
    server: Server, stated: Any, taken: int | None
) -> None:
    (server.spool / "hang").touch()
    server.start_round(0)
    meta = {} if stated is None else {MetaKey.NUM_STEPS_CURRENT_ROUND: stated}
    server.receive(0, {"weight": SENT["weight"] + 1}, DataKind.WEIGHTS, "site-1", **meta)
    wait_for((server.spool / "0-site-1" / f"told-{taken}").exists)


def test_a_reply_of_another_kind_is_on_record(server: Server) -> None:
    server.start_round(0)
    server.receive(0, {"auc": 0.5}, DataKind.METRICS, "site-1")
    assert server.statuses() == {("site-1", 0, "failed")}


def test_a_round_whose_weights_are_not_known_is_on_record(server: Server) -> None:
    server.start_round(0, kind=DataKind.WEIGHT_DIFF)
    server.receive(0, SENT, DataKind.WEIGHTS, "site-1")
    (record,) = read_records(server.root / "job-1" / "leakage.jsonl")
    assert record.status == "failed" and "not known" in record.reason


def test_a_second_update_in_a_round_is_not_audited(server: Server) -> None:
    server.start_round(0)
    for _ in range(2):
        server.receive(0, SENT, DataKind.WEIGHT_DIFF, "site-1")
    server.drain()
    records = list(read_records(server.root / "job-1" / "leakage.jsonl"))
    assert len([r for r in records if r.site == "site-1" and not r.control]) == 1


def test_only_the_rounds_and_sites_that_were_asked_for(tmp_path: Path) -> None:
    server = Server(tmp_path, every_n_rounds=2, sites=["site-1"])
    for number in (0, 1):
        server.start_round(number)
        for site in ("site-1", "site-2"):
            server.receive(number, SENT, DataKind.WEIGHT_DIFF, site)
    server.drain()
    assert server.statuses() == {("site-1", 0, "ok")}
    assert read_status(tmp_path / "job-1")["sites"] == 1
    server.fire(EventType.END_RUN)
