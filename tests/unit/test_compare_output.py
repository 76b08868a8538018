"""What a comparison writes: tables that agree, names that cannot break out, plots."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gradward.cli import main
from gradward.report.compare.page import build_comparison
from gradward.report.compare.plots import draw
from gradward.report.compare.rows import compare_runs
from gradward.report.plots import styled
from gradward.report.run_folder import read_run
from tests.unit.test_compare import leak, noise, records_of, write_run

HOSTILE = r"<b>&_100%$^{}~\|x"


def noise_sweep(folder: Path) -> list[Path]:
    """Three amounts of noise and none at all."""
    for number, value in enumerate((None, 0.01, 0.1, 1.0)):
        write_run(
            folder / f"noise-{value}",
            [*leak("site-1"), *leak("site-2")],
            defences=[] if value is None else [noise(value)],
            accuracies={("site-1", 1): 0.9 - 0.1 * number},
        )
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was written about the sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    build_comparison(noise_sweep(folder / "runs"), folder / "out")
    return folder / "out"


def test_all_formats_hold_the_same_numbers(out: Path) -> None:
    rows: list[dict[str, Any]] = json.loads((out / "compare.json").read_text())["rows"]
    with (out / "compare.csv").open(newline="") as stream:
        parsed = list(csv.DictReader(stream))
    assert len(parsed) == len(rows) == 4
    for line, row in zip(parsed, rows, strict=True):
        assert list(line) == list(row)
        for name, value in row.items():
            if value is None or isinstance(value, str):
                assert line[name] == (value or "")
            else:
                assert float(line[name]) == value
    assert {row["recovered_beyond"] for row in rows} == {0.7}
    for name in ("compare.md", "compare.tex", "index.html"):
        text = (out / name).read_text()
        assert "0.80" in text and "0.70" in text and "0.90" in text, name


def test_names_cannot_break_out_of_a_table(tmp_path: Path) -> None:
    folders = noise_sweep(tmp_path / "runs")[:2]
    build_comparison(folders, tmp_path, [HOSTILE, "plain"])
    latex = (tmp_path / "compare.tex").read_text()
    assert (
        r"\textless{}b\textgreater{}\&\_100\%\$\textasciicircum{}\{\}\textasciitilde{}"
        r"\textbackslash{}|x &"
    ) in latex
    body = latex[latex.index("midrule") : latex.index("bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r" \\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {11}
    page = (tmp_path / "index.html").read_text()
    assert "<b>" not in page and "&lt;b&gt;&amp;_100%" in page
    lines = [x for x in (tmp_path / "compare.md").read_text().splitlines() if x.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {13}


def test_a_minus_is_a_minus_and_a_name_keeps_its_hyphen(tmp_path: Path) -> None:
    records = records_of("site-1", 0, (-0.25, 0.0, -1.5), (-0.5, 0.0, -2.0))
    run = write_run(tmp_path / "noise-0.01", records)
    build_comparison([run.folder], tmp_path)
    latex = (tmp_path / "compare.tex").read_text()
    assert "noise-0.01 & site-1, site-2" in latex and "$-$0.25 ($-$0.50)" in latex


def test_the_page_loads_nothing_and_says_every_plot_in_words(out: Path) -> None:
    page = (out / "index.html").read_text()
    assert "<script" not in page and "<img" not in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    told = re.findall(r'<svg class="plot"[^>]*aria-label="([^"]+)"', page)
    assert len(told) == 3 and "UpdateNoise.fraction 0.1" in told[2]
    for name in ("leakage", "frontier", "sweep"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_frontier_and_the_sweep_are_drawn_where_the_numbers_are(tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in noise_sweep(tmp_path)]
    with styled():
        plots = draw(compare_runs(runs))
    for panel, beyond in zip(plots["frontier"].figure.axes, (0.7, 1.0), strict=True):
        (curve,) = panel.containers
        expected = [(beyond, 0.9), (beyond, 0.8), (beyond, 0.7), (beyond, 0.6)]
        assert sorted(map(tuple, curve[0].get_xydata()), reverse=True) == [
            pytest.approx(point) for point in expected
        ]
    left, right = plots["sweep"].figure.axes
    real, control = (container[0].get_xydata().tolist() for container in left.containers)
    assert real == [[0.01, 2.0], [0.1, 2.0], [1.0, 2.0]]
    assert control == [[0.01, 0.2], [0.1, 0.2], [1.0, 0.2]]
    (accuracy,) = right.containers
    assert accuracy[0].get_ydata() == pytest.approx([0.8, 0.7, 0.6])
    assert left.get_xscale() == "log" and left.get_xlabel() == "UpdateNoise.fraction"


def test_no_error_bar_of_the_sweep_lies_on_another(tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in noise_sweep(tmp_path)]
    with styled():
        figure = draw(compare_runs(runs))["sweep"].figure
    figure.canvas.draw()
    places = [
        line.get_transform().transform(line.get_xydata())[:, 0]
        for axes in figure.axes
        for line, _, _ in axes.containers
    ]
    bars = [
        bar.get_transform().transform(bar.get_segments()[0])[0, 0]
        for axes in figure.axes
        for _, _, (bar,) in axes.containers
    ]
    assert bars == pytest.approx([place[0] for place in places])
    assert all(
        abs(place - other).min() > 3
        for number, place in enumerate(places)
        for other in places[:number]
    )


def test_older_runs_without_configuration_show_leakage_only(tmp_path: Path) -> None:
    folders = noise_sweep(tmp_path / "runs")
    for folder in folders:
        for name in ("configuration.json", "updates.jsonl", "scalars.jsonl"):
            (folder / name).unlink()
    build_comparison(folders, tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {"leakage"}
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert {row["accuracy"] for row in rows} == {None} and len(rows) == 8
    assert "No configuration on record" in (tmp_path / "out" / "index.html").read_text()


def test_what_differs_is_told_row_by_row_and_the_rest_once(out: Path) -> None:
    document = json.loads((out / "compare.json").read_text())
    assert document["swept_setting"] == "UpdateNoise.fraction"
    assert [item["UpdateNoise.fraction"] for item in document["different"]] == [
        0.01,
        0.1,
        1.0,
        None,
    ]
    assert set(document["different"][0]) == {
        "UpdateNoise",
        "UpdateNoise.fraction",
        "UpdateNoise.percentile",
    }
    assert document["equal"]["model"] == "bn_cnn"


def test_the_command_compares_and_names_mistakes(tmp_path: Path) -> None:
    first, second = map(str, noise_sweep(tmp_path / "runs")[:2])
    out = str(tmp_path / "out")
    done = CliRunner().invoke(main, ["report", "--compare", first, second, "--out", out])
    assert done.exit_code == 0 and "index.html" in done.output and "noise-0.01" in done.output
    for arguments, words in (
        ([first, second], "belong to --compare"),
        ([first, "--out", out], "belong to --compare"),
        ([first, str(tmp_path), "--compare"], "there is no leakage.jsonl"),
        ([first, second, "--compare", "--names", "a"], "1 names for 2 runs"),
    ):
        failed = CliRunner().invoke(main, ["report", *arguments])
        assert failed.exit_code and words in failed.output and "Traceback" not in failed.output


@pytest.mark.parametrize("value", [-0.0, math.nan])
def test_numbers_that_are_none_are_empty(tmp_path: Path, value: float) -> None:
    run = write_run(tmp_path / "run", leak(), accuracies={("site-1", 1): value})
    build_comparison([run.folder], tmp_path / "out")
    (row,) = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert str(row["accuracy"]) == ("None" if math.isnan(value) else "0.0")
