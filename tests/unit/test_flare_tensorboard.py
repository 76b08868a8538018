"""TensorBoard's files, read back as TensorBoard reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.analytix import AnalyticsDataType
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import EventScope, FLContextKey, ReservedKey
from nvflare.apis.utils.analytix_utils import create_analytic_dxo
from nvflare.app_common.widgets.streaming import AnalyticsReceiver
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from gradward.flare.tensorboard import LiveTBAnalyticsReceiver

from .fake_engine import context
from .test_report_run_folder import CONFIGURATION

EXPERIMENT = {
    "model": "bn_cnn",
    "dataset": "hist|ology",
    "image_size": [32, 32],
    "training": {"lr": 0.02, "batch_size": 4},
    "per_site": {"site-1": {"batch_size": 1}},
    "seed": 7,
}
AUDIT = {
    "attacks": [{"name": "batchnorm"}, {"name": "matching"}],
    "budget": {"evaluations": 50},
    "subject": "live",
    "every_n_rounds": 1,
    "sites": None,
}


class Board:
    """A receiver in a run of two sites, and what it wrote."""

    def __init__(self, root: Path, receiver: AnalyticsReceiver | None = None) -> None:
        self.root = root
        self.receiver = receiver or LiveTBAnalyticsReceiver()
        (root / "job-1").mkdir()

    def configure(self, **changes: Any) -> None:
        content = CONFIGURATION | {"experiment": EXPERIMENT, "audit": AUDIT} | changes
        (self.root / "job-1" / "configuration.json").write_text(json.dumps(content))

    def fire(self, event: str, **props: Any) -> None:
        fl_ctx = context(self.root, {}, "simulator_server")
        for key, value in props.items():
            fl_ctx.set_prop(key, value, private=True, sticky=False)
        self.receiver.handle_event(event, fl_ctx)

    def stream(self, tag: str, value: float, step: int, site: str | None = None) -> None:
        dxo = create_analytic_dxo(tag, value, AnalyticsDataType.SCALAR, global_step=step)
        message = dxo.to_shareable()
        props: dict[str, Any] = {FLContextKey.EVENT_DATA: message}
        if site is not None:
            message.set_peer_props({ReservedKey.IDENTITY_NAME: site})
            props[FLContextKey.EVENT_SCOPE] = EventScope.FEDERATION
        self.fire(("" if site is None else "fed.") + "analytix_log_stats", **props)

    def read(self, run: str) -> EventAccumulator:
        events = EventAccumulator(str(self.root / "job-1" / "tb_events" / run))
        events.Reload()
        return events

    def scalars(self, run: str) -> dict[str, list[tuple[int, float]]]:
        events = self.read(run)
        return {
            tag: [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path)
    made.fire(EventType.START_RUN)
    yield made
    made.fire(EventType.END_RUN)


def test_values_can_be_read_while_the_run_goes_on(board: Board) -> None:
    board.stream("train/loss", 0.5, 0, site="site-1")
    board.stream("audit/open", 2.0, 0)
    assert board.scalars("site-1") == {"train/loss": [(0, 0.5)]}
    assert board.scalars("server") == {"audit/open": [(0, 2.0)]}
    assert not (board.root / "job-1" / "tb_events" / "summary").exists(), "nothing is configured"


def test_leakage_stands_beside_its_control_site_by_site(board: Board) -> None:
    board.configure()
    board.stream("leakage/batchnorm/recovered", 0.9, 1, site="site-1")
    board.stream("leakage/batchnorm/control/recovered", 0.1, 1, site="site-1")
    board.stream("leakage/batchnorm/control/reid", 0.0, 1, site="site-1")
    board.stream("leakage/batchnorm/psnr", 20.0, 1, site="site-1")
    board.stream("canary/site-2/matching/recovered", 0.3, 1)
    board.stream("canary/site-2/matching/control/recovered", 0.2, 1)
    assert board.scalars("overview/attack") == {
        "overview/recovered/site-1/batchnorm": [(1, 0.9)],
        "overview/recovered/site-2/matching": [(1, 0.3)],
    }
    assert board.scalars("overview/control") == {
        "overview/recovered/site-1/batchnorm": [(1, 0.1)],
        "overview/reid/site-1/batchnorm": [(1, 0.0)],
        "overview/recovered/site-2/matching": [(1, 0.2)],
    }


def test_the_summary_is_the_worst_of_sites_and_rounds_best_of_attacks(board: Board) -> None:
    board.configure()
    for site, number, attack, real, control in (
        ("site-1", 0, "batchnorm", 0.9, 0.1),
        ("site-1", 0, "matching", 0.4, 0.3),
        ("site-2", 0, "batchnorm", 0.2, 0.1),
        ("site-1", 1, "batchnorm", 0.5, 0.1),
    ):
        board.stream(f"leakage/{attack}/recovered", real, number, site=site)
        board.stream(f"leakage/{attack}/control/recovered", control, number, site=site)
    for number, site, value in ((0, "site-1", 0.2), (1, "site-1", 0.5), (1, "site-2", 0.7)):
        board.stream("valid/accuracy", value, number, site=site)
    summary = board.scalars("summary")
    # 0.9 of batchnorm against 0.3, the better of the two controls of that site and round.
    assert summary["worst_recovered_minus_control"][-1] == (1, 0.6)
    assert summary["accuracy"][-1] == (1, 0.6)


def test_the_card_shows_the_configuration_as_a_table(board: Board) -> None:
    board.configure()
    board.stream("train/loss", 0.5, 0, site="site-1")
    events = board.read("summary")
    (card,) = events.Tensors("configuration/text_summary")
    text = card.tensor_proto.string_val[0].decode()
    rows = dict(line.strip("| ").split(" | ") for line in text.splitlines()[2:])
    assert rows["**job**"] == "quickstart"
    assert rows["**sites**"] == "site-1, site-2"
    assert rows["**dataset**"] == "hist&#124;ology", "a bar would end the cell"
    assert json.loads(rows["**per site**"]) == {"site-1": {"batch_size": 1}}
    assert json.loads(rows["**UpdateNoise (all sites)**"]) == {"std": 0.1}


def test_the_first_screen_has_a_chart_a_site(board: Board) -> None:
    board.configure()
    board.stream("train/loss", 0.5, 0, site="site-1")
    (event,) = board.read("summary").Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    first = layout.category[0]
    assert first.title == "Recovered fraction of the images"
    assert [chart.title for chart in first.chart] == [
        "site-1: attack and control",
        "site-2: attack and control",
    ]
    (tag,) = first.chart[0].multiline.tag
    assert tag == r"^overview/recovered/site\-1/"


def test_runs_can_be_compared_by_their_settings(board: Board) -> None:
    board.configure()
    board.stream("train/loss", 0.5, 0, site="site-1")
    board.fire(EventType.END_RUN)
    content = board.read("summary").summary_metadata
    started = HParamsPluginData.FromString(
        content["_hparams_/session_start_info"].plugin_data.content
    ).session_start_info.hparams
    assert started["training/lr"].number_value == pytest.approx(0.02)
    assert started["training/optimizer"].string_value == "sgd", "the default of the sites"
    assert started["audit/attacks"].string_value == "batchnorm, matching"
    assert started["defence"].string_value == "guard (site-1); UpdateNoise (all sites)"
    assert "_hparams_/session_end_info" in content


def test_without_a_readable_configuration_the_values_are_still_there(board: Board) -> None:
    board.configure(schema=99)
    warnings: list[str] = []
    board.receiver.log_warning = lambda ctx, text, **more: warnings.append(text)
    for number in range(2):
        board.stream("train/loss", 0.5, number, site="site-1")
    assert len(board.scalars("site-1")["train/loss"]) == 2
    assert len(warnings) == 1 and "schema" in warnings[0]
