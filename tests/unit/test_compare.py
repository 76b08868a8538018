"""Runs side by side: figures worked out by hand, who belongs together, what is unlike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from gradward.report.compare.rows import Row, RunComparison, compare_runs
from gradward.report.records import LeakageRecord
from gradward.report.run_folder import Run, read_run

SCORES = {
    "n_images": 1,
    "ssim": 0.5,
    "prior_ssim": 0.3,
    "psnr": 20.0,
    "mse": 0.01,
    "rank": 1.0,
    "gallery": 100,
    "leakage": 0.1,
}
NOTHING = {**SCORES, "recovered": 0.0, "reid": 0.0, "rdlv": 0.0}


def records_of(
    site: str, number: int, real: Sequence[float], control: Sequence[float], seed: int = 1
) -> list[LeakageRecord]:
    """An attack and its control, each (recovered, reid, rdlv)."""
    names = ("recovered", "reid", "rdlv")
    return [
        LeakageRecord(
            job="simulate_job",
            seed=seed,
            site=site,
            round=number,
            attack="batchnorm",
            control=is_control,
            status="ok",
            prior=NOTHING,
            membership="known",
            **{**SCORES, **dict(zip(names, values, strict=True))},  # type: ignore[arg-type]
        )
        for is_control, values in ((False, real), (True, control))
    ]


def noise(fraction: float, sites: list[str] | None = None) -> dict[str, Any]:
    return {
        "sites": sites,
        "kind": "update_filter",
        "name": "UpdateNoise",
        "settings": {"fraction": fraction, "percentile": 95.0},
    }


def write_run(
    folder: Path,
    records: Sequence[LeakageRecord],
    *,
    seed: int = 1,
    defences: Sequence[dict[str, Any]] = (),
    experiment: dict[str, Any] | None = None,
    accuracies: dict[tuple[str, int], float] | None = None,
    modes: dict[str, str] | None = None,
    sites: Sequence[str] = ("site-1", "site-2"),
) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"model": "bn_cnn", "dataset": "histology", "image_size": [32, 32], "seed": seed}
    lines: dict[str, list[dict[str, Any]]] = {
        "leakage.jsonl": [asdict(record) for record in records],
        "scalars.jsonl": [
            {"site": site, "tag": "valid/accuracy", "step": step, "value": value}
            for (site, step), value in (accuracies or {}).items()
        ],
        "updates.jsonl": [
            {"schema": 1, "site": site, "round": 0, "mode": mode, "buffers": "seen"}
            for site, mode in (modes or {}).items()
        ],
    }
    for name, values in lines.items():
        (folder / name).write_text("".join(json.dumps(item) + "\n" for item in values))
    configuration = {
        "schema": 1,
        "job": "simulate_job",
        "rounds": 3,
        "sites": list(sites),
        "experiment": {**whole, **(experiment or {})},
        "audit": {"attacks": [{"name": "batchnorm"}], "budget": {"evaluations": 10}},
        "defences": list(defences),
    }
    (folder / "configuration.json").write_text(json.dumps(configuration))
    return read_run(folder)


def leak(site: str = "site-1", seed: int = 1) -> list[LeakageRecord]:
    return records_of(site, 0, (0.8, 1.0, 2.0), (0.1, 0.0, 0.2), seed)


def only_row(comparison: RunComparison, arm: str, site: str) -> Row:
    (row,) = [item for item in comparison.rows if item.arm == arm and site in item.sites]
    return row


def test_leakage_beyond_control_is_a_mean_over_updates_with_its_spread(tmp_path: Path) -> None:
    """An attack below the best guess (0) counts as that guess, for update and control alike."""
    records = [
        *records_of("site-1", 0, (0.8, 1.0, 2.0), (0.1, 0.0, 0.2)),
        *records_of("site-1", 1, (0.6, 0.5, 1.0), (-0.5, 0.1, -3.0)),
        *records_of("site-2", 0, (-0.7, 0.0, -1.0), (0.2, 0.3, 0.0)),
    ]
    (row,) = compare_runs([write_run(tmp_path / "run", records)]).rows
    recovered, reid = row.measured["recovered"], row.measured["reid"]
    assert recovered.real.mean == pytest.approx((0.8 + 0.6 - 0.7) / 3)
    assert recovered.control.mean == pytest.approx((0.1 - 0.5 + 0.2) / 3)
    # 0.8 - 0.1, 0.6 - 0, 0 - 0.2
    assert recovered.beyond.mean == pytest.approx((0.7 + 0.6 - 0.2) / 3)
    assert recovered.beyond.deviation == pytest.approx(0.49329, abs=1e-5)
    assert reid.beyond.mean == pytest.approx((1.0 + 0.4 - 0.3) / 3)
    assert (row.rounds, row.seeds, row.scored, row.attempted) == (2, 1, 3, 3)
    assert row.worst is not None and (row.worst.site, row.worst.round) == ("site-1", 0)


def test_accuracy_is_that_of_the_last_rounds_without_the_untrained_one(tmp_path: Path) -> None:
    values = {("site-1", step): 0.1 * step for step in range(6)}
    values |= {("site-2", step): 0.1 * step + 0.2 for step in range(6)}
    (row,) = compare_runs([write_run(tmp_path / "long", leak(), accuracies=values)]).rows
    assert row.accuracy.mean == pytest.approx(0.5) and row.accuracy.count == 6
    short = {("site-1", 0): 0.1, ("site-1", 1): 0.9}
    (row,) = compare_runs([write_run(tmp_path / "short", leak(), accuracies=short)]).rows
    assert row.accuracy.mean == pytest.approx(0.9)


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path: Path) -> None:
    first = write_run(tmp_path / "plain-seed10", leak(seed=10), seed=10)
    second = write_run(
        tmp_path / "plain-seed11",
        records_of("site-1", 0, (0.4, 0.0, 1.0), (0.1, 0.0, 0.2), seed=11),
        seed=11,
    )
    noisy = write_run(tmp_path / "noisy", leak(), defences=[noise(0.1)])
    comparison = compare_runs([first, noisy, second])
    assert [(row.arm, row.seeds) for row in comparison.rows] == [("plain", 2), ("noisy", 1)]
    assert comparison.rows[0].measured["recovered"].beyond.mean == pytest.approx((0.7 + 0.3) / 2)
    assert comparison.rows[1].defence == "UpdateNoise fraction=0.1 percentile=95.0"


def test_a_site_that_did_more_than_the_job_asked_is_no_repetition(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", leak(), modes={"site-1": "undefended"}),
        write_run(tmp_path / "b", leak(seed=2), seed=2, modes={"site-1": "class"}),
    ]
    assert [row.trained_on for row in compare_runs(runs).rows] == [("undefended",), ("class",)]


def test_the_same_seed_twice_is_not_counted_as_two(tmp_path: Path) -> None:
    comparison = compare_runs([write_run(tmp_path / name / "run", leak()) for name in "ab"])
    assert [row.arm for row in comparison.rows] == ["run (1)", "run (2)"]
    assert any("same seed" in note for note in comparison.notes)


def test_names_group_runs_and_may_not_hide_another_setting(tmp_path: Path) -> None:
    plain = write_run(tmp_path / "a", leak())
    noisy = write_run(tmp_path / "b", leak(), defences=[noise(0.1)])
    assert [arm.name for arm in compare_runs([plain, noisy], ["none", "noise"]).arms] == [
        "none",
        "noise",
    ]
    with pytest.raises(ValueError, match="'x' differ in more than their seed"):
        compare_runs([plain, noisy], ["x", "x"])
    with pytest.raises(ValueError, match="1 names for 2 runs"):
        compare_runs([plain, noisy], ["x"])


def test_sites_behind_different_defences_have_rows_of_their_own(tmp_path: Path) -> None:
    """A site's row stands beside the same site in the run that defended all alike."""
    records = [*leak("site-1"), *leak("site-2"), *leak("site-3")]
    sites = ("site-1", "site-2", "site-3")
    plain = write_run(tmp_path / "plain", records, sites=sites)
    mixed = write_run(tmp_path / "mixed", records, sites=sites, defences=[noise(0.1, ["site-2"])])
    assert [row.sites for row in compare_runs([plain]).rows] == [sites]
    rows = compare_runs([plain, mixed]).rows
    assert [(row.arm, row.sites) for row in rows] == [
        ("plain", ("site-1", "site-3")),
        ("mixed", ("site-1", "site-3")),
        ("plain", ("site-2",)),
        ("mixed", ("site-2",)),
    ]
    assert [row.defence for row in rows][2:] == ["none", "UpdateNoise fraction=0.1 percentile=95.0"]


def test_the_one_number_that_differs_is_the_axis(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / str(value), leak(), defences=[noise(value)])
        for value in (0.1, 0.01, 1.0)
    ]
    baseline = write_run(tmp_path / "none", leak())
    comparison = compare_runs([*runs, baseline])
    assert comparison.axis == "UpdateNoise.fraction"
    assert [row.value for row in comparison.rows] == [0.1, 0.01, 1.0, None]
    assert "dataset" in comparison.equal and not comparison.unlike


@pytest.mark.parametrize(
    ("experiment", "axis"),
    [
        ({"training": {"batch_size": 4}}, "training.batch_size"),
        ({"training": {"batch_size": 4, "lr": 0.5}}, None),
        ({"training": {"batch_size": 8, "optimizer": "adam"}}, None),
        ({"training": {"batch_size": 8}}, None),
    ],
)
def test_no_axis_is_found_where_more_or_nothing_differs(
    tmp_path: Path, experiment: dict[str, Any], axis: str | None
) -> None:
    first = write_run(tmp_path / "a", leak(), experiment={"training": {"batch_size": 8}})
    second = write_run(tmp_path / "b", leak(), experiment=experiment)
    assert compare_runs([first, second]).axis == axis


def test_what_is_not_like_for_like_is_named(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", leak())
    larger = write_run(tmp_path / "b", leak(), experiment={"image_size": [64, 64]})
    (found,) = compare_runs([first, larger]).unlike
    assert found == "image_size (a: [32, 32]; b: [64, 64])"
    other = [replace(record, attack="matching", gallery=200) for record in leak()]
    (folder := tmp_path / "old").mkdir()
    (folder / "leakage.jsonl").write_text(
        "".join(json.dumps(asdict(record)) + "\n" for record in other)
    )
    comparison = compare_runs([first, read_run(folder)])
    assert [item.split(" (")[0] for item in comparison.unlike] == [
        "attacks on record",
        "size of the gallery",
    ]
    assert any("No configuration on record: old" in note for note in comparison.notes)
    assert only_row(comparison, "old", "site-1").defence is None


def test_an_attack_that_was_not_scored_is_no_zero(tmp_path: Path) -> None:
    refused = replace(
        leak()[0], status="refused", recovered=None, reid=None, rdlv=None, n_images=None, prior={}
    )
    (row,) = compare_runs([write_run(tmp_path / "run", [refused])]).rows
    assert row.measured["recovered"].real.count == 0 and row.worst is None
    assert (row.scored, row.attempted, row.images) == (0, 1, None)


def test_runs_whose_model_is_unknown_are_not_taken_for_repetitions(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        file = write_run(tmp_path / name, leak(seed=seed)).folder / "configuration.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "experiment": {}}))
    comparison = compare_runs([read_run(tmp_path / name) for name in "ab"])
    assert [arm.name for arm in comparison.arms] == ["a", "b"]
    assert any("No experiment on record: a, b" in note for note in comparison.notes)
