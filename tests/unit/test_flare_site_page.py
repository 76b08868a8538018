"""What a site keeps for its own page while it trains and answers, and the page at the end."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.widgets.streaming import AnalyticsSender

from gradward.data import load_public_set, load_split
from gradward.flare.analytics import stream_scalars
from gradward.flare.protocol import SCORE_TASK, ScoreReply, ScoreRequest
from gradward.flare.rounds import RoundRecord, remember_round
from gradward.flare.scorer import LeakageScorer
from gradward.report.exposures import read_exposures
from gradward.report.perturbed_pictures import read_perturbed

from .fake_engine import context
from .flare_desk import Desk, FlatPerturbation, experiment

SIZE: dict[str, Any] = {"image_size": (32, 32), "channels": 3}


class Listener(AnalyticsSender):
    """Keeps what is streamed."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[str, float] = {}

    def add(self, tag: str, value: Any, data_type: Any, global_step: int, **more: Any) -> None:
        self.heard[f"{global_step} {tag}"] = value


def private(root: Path) -> Path:
    return root / "gradward" / "jobs" / "job-1"


def streamed(root: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (private(root) / "scalars.log").read_text().splitlines()]
    return {
        f"{line['round']} {tag}": value for line in lines for tag, value in line["scalars"].items()
    }


@pytest.fixture
def site_4(tmp_path: Path) -> FLContext:
    """A site of 16 images that trained on four of them."""
    components = {"experiment": experiment(), "analytics_sender": Listener()}
    fl_ctx = context(tmp_path, components, "site-4")
    private(tmp_path).mkdir(parents=True)
    remember_round(private(tmp_path), RoundRecord(0, [11, 2, 7, 5], 1))
    return fl_ctx


def score(fl_ctx: FLContext, images: np.ndarray) -> ScoreReply:
    public = load_public_set({"format": "embedded"}, name="histology", **SIZE)
    control = np.full(images.shape, 0.5, np.float32)
    request = ScoreRequest("site-4", 0, "matching", images, control, public.checksum)
    answer = LeakageScorer().execute(SCORE_TASK, request.to_shareable(), fl_ctx, Signal())
    return ScoreReply.from_shareable(answer)


def test_the_images_that_were_rebuilt_lead_the_page(site_4: FLContext, tmp_path: Path) -> None:
    site = load_split({"format": "embedded"}, "training", site="site-4", **SIZE)
    images = site.images.numpy()
    # Two are rebuilt, one less well; the other two pictures show nothing.
    blurred = images[7] * 0.5 + images[7].mean() * 0.5
    rebuilt = np.stack([np.zeros_like(images[0]), blurred, images[2], np.ones_like(images[0])])
    assert score(site_4, rebuilt).status == "ok"
    (exposure,), _ = read_exposures(private(tmp_path))
    assert exposure.positions.tolist() == [11, 2, 7, 5] and exposure.known
    assert exposure.pictures.rows[:2].tolist() == [1, 2]
    assert site.names is not None
    assert exposure.pictures.names and exposure.pictures.names[:2] == [site.names[2], site.names[7]]
    np.testing.assert_allclose(exposure.pictures.truths[0] / 255, images[2], atol=1e-6)
    np.testing.assert_allclose(exposure.pictures.reconstructions[0] / 255, images[2], atol=1e-6)
    (tmp_path / "job-1").mkdir(exist_ok=True)
    (tmp_path / "job-1" / "meta.json").write_text(json.dumps({"name": "quickstart"}))
    # Another process may be the one that ends the run.
    LeakageScorer().handle_event(EventType.END_RUN, site_4)
    page = (private(tmp_path) / "report" / "index.html").read_text()
    assert page.index("Image 2: true image") < page.index("Image 7: true image")
    assert site.names[2] in page and "quickstart (job-1)" in page


def test_a_page_that_cannot_be_built_is_a_line_without_names(
    site_4: FLContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def explode(folder: Path) -> None:
        raise RuntimeError("patient smith.png")

    monkeypatch.setattr("gradward.report.site_page.build_site_page", explode)
    with caplog.at_level(logging.INFO):
        LeakageScorer().handle_event(EventType.END_RUN, site_4)
    assert "RuntimeError" in caplog.text and "gradward report" in caplog.text
    assert "smith" not in caplog.text and str(tmp_path) not in caplog.text


def test_what_cannot_be_kept_does_not_leave(
    site_4: FLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("gradward.flare.scorer.save_exposure", full)
    images = np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32)
    assert score(site_4, images).status == "refused"


def test_every_streamed_scalar_is_on_record(site_4: FLContext, tmp_path: Path) -> None:
    listener = site_4.get_engine().get_component("analytics_sender")
    images = np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32)
    score(site_4, images)
    stream_scalars(site_4, "analytics_sender", "train", {"loss": 0.5, "auc": float("nan")}, 3)
    assert listener.heard["3 train/loss"] == 0.5 and "3 train/auc" not in listener.heard
    assert "0 leakage/matching/control/reid" in listener.heard
    assert streamed(tmp_path) == listener.heard
    assert (private(tmp_path) / "scalars.log").stat().st_mode & 0o077 == 0
    stream_scalars(site_4, "no sender", "train", {"loss": 0.25}, 4)
    assert streamed(tmp_path) == listener.heard, "what nobody sends did not leave"


def test_a_scalar_that_cannot_be_put_on_record_does_not_leave(
    site_4: FLContext, tmp_path: Path
) -> None:
    (private(tmp_path) / "scalars.log").mkdir()
    stream_scalars(site_4, "analytics_sender", "train", {"loss": 0.5}, 3)
    assert site_4.get_engine().get_component("analytics_sender").heard == {}


class CountedViews:
    """Counts how often its pictures are asked for."""

    def __init__(self, views: Any) -> None:
        self.views, self.asked = views, 0

    def __len__(self) -> int:
        return len(self.views)

    def batch(self, indices: Any) -> Any:
        self.asked += 1
        return self.views.batch(indices)


def test_the_page_shows_what_the_training_got_and_draws_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, experiment())
    counted: list[CountedViews] = []
    plain = FlatPerturbation.open

    def count(self: Any, *args: Any) -> Any:
        opened = plain(self, *args)
        opened.source._source = CountedViews(opened.source._source)
        counted.append(opened.source._source)
        return opened

    monkeypatch.setattr(FlatPerturbation, "open", count)
    reply: Shareable = desk.answer(desk.task("train"))
    assert reply.get_return_code() == "OK" and counted[0].asked == 2, "16 images in batches of 8"
    kept = read_perturbed(private(tmp_path))
    site = load_split({"format": "embedded"}, "training", site="site-4", **SIZE)
    assert kept is not None and len(kept.positions) == 8 and kept.mode == "class"
    for place, position in enumerate(kept.positions):
        grey = 0.4 + 0.2 * float(site.labels[position])
        assert kept.pictures[place].mean() == pytest.approx(grey, abs=0.003)
        np.testing.assert_allclose(kept.originals[place], site.images[position], atol=0.003)
    assert (private(tmp_path) / "perturbed.npz").stat().st_mode & 0o077 == 0
    LeakageScorer().handle_event(EventType.END_RUN, desk.task("train"))
    page = (private(tmp_path) / "report" / "index.html").read_text()
    assert page.count("What the training got") == 8 and "draw of the image's class" in page
    assert counted[0].asked == 2
