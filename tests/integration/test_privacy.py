"""Rule 1: pixels stay home."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.data import immunohistochemistry

from gradward.flare.simulator import SimulatedRun

from .harness import TINY_AUDIT, JobVariant, logs_of, records_of, simulate

SITES = ("site-1", "site-2")
IMAGE = (3, 32, 32)
SECRET_NAMES = {site: [f"smith-jane-{site}-{i}.png" for i in range(6)] for site in SITES}


def write_hospital(folder: Path, site: str, offset: int) -> None:
    """Write a data list with file names that must never leave."""
    folder.mkdir()
    patches = immunohistochemistry()
    lists: dict[str, list[dict[str, object]]] = {"training": [], "validation": [], "testing": []}
    for index, name in enumerate(SECRET_NAMES[site]):
        row = offset + 40 * index
        Image.fromarray(patches[row : row + 32, 128:160]).save(folder / name)
        key = ("training", "training", "training", "training", "validation", "testing")[index]
        lists[key].append({"image": name, "label": index % 2, "patient": f"MRN-{site}-{index}"})
    (folder / "list.json").write_text(json.dumps(lists))


@pytest.fixture(scope="module")
def spied(tmp_path_factory: pytest.TempPathFactory) -> tuple[SimulatedRun, Path]:
    base = tmp_path_factory.mktemp("spied")
    spy = base / "spy"
    spy.mkdir()
    settings = {"sites": {}}
    for position, site in enumerate(SITES):
        write_hospital(base / site, site, 7 + 20 * position)
        spec = {"format": "datalist", "path": str(base / site / "list.json")}
        settings["sites"][site] = {"data": {"hospital": spec}}
    job = JobVariant.of("quickstart", base)
    job.experiment(
        dataset="hospital",
        public_set="histology",
        public_checksum=None,
        training={"batch_size": 4, "lr": 0.02},
        per_site={},
    )
    job.audit(**TINY_AUDIT)
    job.workflow(num_rounds=2, min_clients=1)
    job.add("client", "federation_probes.SendSpy", folder=str(spy))
    job.add_filter(
        "task_data_filters",
        ["score_reconstruction"],
        "federation_probes.ReceiveSpy",
        folder=str(spy),
    )
    return simulate(job, base / "run", SITES, settings), spy


def test_the_run_was_scored(spied: tuple[SimulatedRun, Path]) -> None:
    run, _ = spied
    assert run.exit_code == 0
    assert [r.status for r in records_of(run)] == ["ok"] * 8


def arrays_sent(spy: Path, site: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (spy / f"{site}.arrays.jsonl").read_text().splitlines()]


def test_no_array_of_image_size_leaves_a_site(spied: tuple[SimulatedRun, Path]) -> None:
    _, spy = spied
    for site in SITES:
        sent = arrays_sent(spy, site)
        assert any(entry["shape"] == [16, 3, 3, 3] for entry in sent), "the spy saw the update"
        for entry in sent:
            pixels = math.prod(entry["shape"])
            assert pixels % math.prod(IMAGE) or entry["shape"][-2:] != list(IMAGE[1:]), entry


def test_no_pixel_row_and_no_name_is_among_the_bytes_sent(
    spied: tuple[SimulatedRun, Path], tmp_path: Path
) -> None:
    _, spy = spied
    base = spy.parent
    for site in SITES:
        sent = (spy / f"{site}.bytes").read_bytes()
        assert b"train/loss" in sent and b"leakage/batchnorm" in sent, "the spy saw events"
        update = next(e for e in arrays_sent(spy, site) if e["shape"] == [16, 3, 3, 3])
        assert bytes.fromhex(update["head"]) in sent, "arrays travel as they are: they can be found"
        for index, name in enumerate(SECRET_NAMES[site]):
            assert name.encode() not in sent and name.removesuffix(".png").encode() not in sent
            assert f"MRN-{site}-{index}".encode() not in sent
            pixels = np.asarray(Image.open(base / site / name))
            planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
            for row in (pixels[10], planes[0, 10], planes[1, 20]):
                assert row.tobytes() not in sent
                for dtype in (np.float32, np.float64, np.float16):
                    assert (row / 255).astype(dtype).tobytes() not in sent
            assert (base / site / name).read_bytes()[40:200] not in sent


def test_each_site_has_a_page_that_shows_its_own_images_and_stays(
    spied: tuple[SimulatedRun, Path],
) -> None:
    run, spy = spied
    for site in SITES:
        page = run.folder / "workspace.private" / site / "jobs" / "simulate_job" / "report"
        html = (page / "index.html").read_text()
        assert (page / "index.html").stat().st_mode & 0o077 == page.stat().st_mode & 0o077 == 0
        shown = [name for name in SECRET_NAMES[site][:4] if name in html]
        assert len(shown) == 4 and f"MRN-{site}-0" in html, "four images were trained on"
        other = SITES[1 - SITES.index(site)]
        assert not [name for name in SECRET_NAMES[other] if name in html]
        pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
        assert len(pictures) == 4 * 5
        truth = np.asarray(Image.open(spy.parent / site / shown[0]))
        decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in pictures]
        assert any(np.array_equal(truth, picture) for picture in decoded), "it shows the image"
        for entry in scalars_on_record(page.parent):
            assert entry.encode() in (spy / f"{site}.bytes").read_bytes(), "it left indeed"
    # Nothing that NVFlare keeps, sends or lets download has any of it.
    for file in (run.folder / "workspace").rglob("*"):
        assert file.name not in ("exposures", "answers.log", "scalars.log", "perturbed.npz")
        if file.is_file():
            assert b"smith-jane" not in file.read_bytes(), file.name
            assert b"This page shows patients" not in file.read_bytes(), file.name
    for folder in ("report", "tb_events"):
        for file in (run.folder / folder).rglob("*.*"):
            assert b"smith-jane" not in file.read_bytes() and b"MRN-" not in file.read_bytes()


def scalars_on_record(job_folder: Path) -> set[str]:
    """Tags of the scalars that the site's own log says were sent."""
    lines = (job_folder / "scalars.log").read_text().splitlines()
    return {tag for line in lines for tag in json.loads(line)["scalars"] if "/" in tag}


def test_nothing_of_a_page_is_among_the_bytes_sent(spied: tuple[SimulatedRun, Path]) -> None:
    """Neither its words nor any of its pictures, as they lie there or as bytes."""
    run, spy = spied
    for site in SITES:
        sent = (spy / f"{site}.bytes").read_bytes()
        folder = run.folder / "workspace.private" / site / "jobs" / "simulate_job"
        html = (folder / "report" / "index.html").read_text()
        assert b"This page shows patients" not in sent and b"data:image" not in sent
        for picture in re.findall(r'src="data:image/png;base64,([^"]+)"', html):
            assert picture[60:160].encode() not in sent
            assert base64.b64decode(picture)[60:160] not in sent
        for file in (folder / "exposures").glob("*.npz"):
            assert file.read_bytes()[-400:-200] not in sent
            with np.load(file) as arrays:
                for name in ("truths", "real", "rows"):
                    raw = arrays[name].tobytes()
                    assert len(raw) < 32 or raw[:256] not in sent, name


def test_no_name_is_in_any_log(spied: tuple[SimulatedRun, Path]) -> None:
    logs = logs_of(spied[0])
    assert "MRN-" not in logs and "smith-jane" not in logs


def test_reconstructions_go_to_no_other_site(spied: tuple[SimulatedRun, Path]) -> None:
    received = [json.loads(line) for line in (spied[1] / "received.jsonl").read_text().splitlines()]
    assert {entry["at"] for entry in received} == set(SITES)
    assert all(entry["at"] == entry["of"] for entry in received)
