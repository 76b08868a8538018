"""Progress in a pipe or file: lines on stderr, at changes alone, and nothing on stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradward import remaining
from gradward.cli_progress import RunProgress
from gradward.flare.perturber_report import FIT_FILE, FitProgress, fits_under_way


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(remaining.Remaining.__init__, "__defaults__", (found,))
    return found


def status(heard: int, open_audits: int, **more: Any) -> dict[str, Any]:
    values = {"phase": "training", "round": 0, "rounds": 2, "sites": 2}
    return values | {"sites_heard": heard, "audits_open": open_audits} | more


@pytest.mark.parametrize("forced", [False, True])
def test_a_run_tells_each_change_once_and_what_is_left(
    clock: Clock,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    forced: bool,
) -> None:
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with RunProgress("job") as progress:
        for seconds, values in [
            (0, {}),
            (0, status(0, 0)),
            (30, status(0, 0)),
            (60, status(1, 1)),
            (90, status(1, 1)),
            (240, status(2, 4, phase="auditing", round=1)),
            (300, status(2, 2, phase="auditing", round=1)),
        ]:
            clock.now = seconds
            progress.show(values)
    told = capfd.readouterr()
    assert told.out == "" and "\r" not in told.err and "\x1b" not in told.err
    assert told.err.splitlines() == [
        "job: training, round 1 of 2, 0 of 2 sites heard, 0 audits open",
        "job: training, round 1 of 2, 1 of 2 sites heard, 1 audit open, "
        "about 3 min of training left",
        "job: auditing, round 2 of 2, 2 of 2 sites heard, 4 audits open",
        "job: auditing, round 2 of 2, 2 of 2 sites heard, 2 audits open, about 60 s left",
    ]


def test_a_fit_tells_its_part_and_what_is_left_in_the_log_and_at_the_desk_alone(
    clock: Clock, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []

    class Log:
        def log_info(self, fl_ctx: object, line: str) -> None:
            lines.append(line)

    private = tmp_path / "site-1"
    private.mkdir()
    with FitProgress(Log(), None, ("autoencoder", "gates"), private) as fit:  # type: ignore[arg-type]
        fit("autoencoder", 0.0)
        clock.now = 60
        fit("autoencoder", 0.5)
        found = fits_under_way(tmp_path)
        assert found["site-1"]["words"] == (
            "part 1 of 2 (autoencoder), 50%, about 60 s left in this part"
        )
        assert (private / FIT_FILE).stat().st_mode & 0o077 == 0
        fit("gates", 0.0)
        with RunProgress("job") as progress:
            for _ in range(2):
                progress.show(status(0, 0, fits=fits_under_way(tmp_path)))
    # Each part has a line; within ten seconds there is no other.
    assert lines == [
        "fitting the perturber: part 1 of 2 (autoencoder), 0%",
        "fitting the perturber: part 2 of 2 (gates), 0%",
    ]
    assert capfd.readouterr().err.splitlines() == [
        "job: training, round 1 of 2, 0 of 2 sites heard, 0 audits open; "
        "site-1 fits its perturber: part 2 of 2 (gates), 0%"
    ]
    assert fits_under_way(tmp_path) == {}, "the file goes with the fit"


def test_a_file_that_is_being_replaced_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "site-1").mkdir()
    (tmp_path / "site-1" / FIT_FILE).write_text(json.dumps({"part": "gates"})[:5])
    assert fits_under_way(tmp_path) == {}
