"""The site's own page: what it says, that it needs nothing else, and who may read it."""

from __future__ import annotations

import base64
import io
import json
import re
import stat
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from gradward.cli import main
from gradward.data import ImageSet
from gradward.metrics import score_reconstructions
from gradward.metrics.scores import EachImage, ImageScores
from gradward.report.exposed_images import Tally, most_exposed, most_recovered
from gradward.report.exposures import (
    Exposure,
    Pictures,
    by_exposure,
    read_exposures,
    save_exposure,
)
from gradward.report.site_folder import is_site_folder
from gradward.report.site_luck import luck_of
from gradward.report.site_page import build_site_page

NAN = float("nan")
# SSIM, recovered fraction and rank of a truth.
Row = tuple[float, float, float]
UNMATCHED: Row = (NAN, NAN, NAN)
HOSTILE = '/data/<script src="http://evil/x.js">&"smith\'.png'


def scores(rows: list[Row]) -> ImageScores:
    return ImageScores(*torch.tensor(rows, dtype=torch.float64).T)


def exposure(
    positions: list[int],
    real: list[Row],
    control: list[Row] | None,
    *,
    prior: list[Row] | None = None,
    number: int = 0,
    attack: str = "batchnorm",
    name: str = "/data/scan",
) -> Exposure:
    guess = prior or [UNMATCHED if row is UNMATCHED else (0.2, 0.0, 40.0) for row in real]
    each = EachImage(scores(real), None if control is None else scores(control), scores(guess))
    rows = by_exposure(each)
    shown = len(rows)
    draw = np.random.default_rng(number)
    pictures = draw.integers(0, 256, (3, shown, 3, 16, 16), dtype=np.uint8)
    return Exposure(
        number,
        attack,
        known=True,
        gallery=100,
        positions=np.array(positions),
        each=each,
        pictures=Pictures(
            rows=np.array(rows, dtype=np.int64),
            truths=pictures[0],
            reconstructions=pictures[1],
            controls=None if control is None else pictures[2],
            prior=np.full((3, 16, 16), 128, np.uint8),
            labels=[1] * shown,
            names=[f"{name}-{positions[row]}" for row in rows],
            patients=[f"MRN-{positions[row]}" for row in rows],
        ),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "site-7" / "jobs" / "job-1"
    made.mkdir(parents=True)
    return made


# Three images in two rounds; image 8 is in the second round only, and had no reconstruction.
FIRST = exposure(
    [3, 5],
    real=[(0.9, 0.8, 1), (0.5, 0.2, 1)],
    control=[(0.2, 0.1, 7), (0.5, 0.6, 1)],
)
SECOND = exposure(
    [5, 8, 3],
    real=[(0.6, 0.5, 2), UNMATCHED, (0.3, -0.1, 9)],
    control=[UNMATCHED, (0.4, 0.55, 1), (0.2, 0.0, 30)],
    number=1,
)


def test_counts_are_right_and_the_most_exposed_come_first() -> None:
    found = most_exposed([FIRST, SECOND], 10)
    # Image 3 was recognised while its control was not; image 5 by both, or by neither.
    assert [image.position for image in found.images] == [3, 5]
    three, five = found.images
    assert (three.real, three.control) == (Tally(2, 1, 1), Tally(2, 0, 0))
    assert (five.real, five.control) == (Tally(2, 1, 1), Tally(2, 1, 1))
    assert (three.prior, five.prior) == (Tally(2, 0, 0), Tally(2, 0, 0))
    assert (three.worst.round, five.worst.round) == (0, 1), ".5 over no control, not .2 under .6"
    assert (found.scored, found.recognised, found.recognised_by_control) == (3, 2, 2)
    assert (found.recovered, found.recovered_by_control) == (2, 2), "5 and 8 of the control"
    assert [image.position for image in most_exposed([FIRST, SECOND], 1).images] == [3]


def test_what_the_starting_picture_shows_already_does_not_lead() -> None:
    rows = [(0.2, 0.0, 1.0), (0.3, 0.1, 1.0)]
    found = most_exposed(
        [exposure([4, 6], rows, None, prior=[(0.2, 0.0, 1.0), (0.2, 0.0, 9.0)])], 5
    )
    assert [image.position for image in found.images] == [6, 4]
    assert found.images[1].prior == Tally(1, 0, 1) and found.recognised_by_prior == 1


def many(hits: int, control_hits: int, recovered: float = -0.1) -> Exposure:
    """Return 48 images of which the first so many were re-identified, and of the control."""
    real, control = (
        [(0.2, share, 1.0 if image < count else 20.0) for image in range(48)]
        for count, share in ((hits, recovered), (control_hits, -0.1))
    )
    return exposure(list(range(48)), real, control)


@pytest.mark.parametrize(
    ("hits", "control_hits", "words"),
    [
        (6, 2, "Such counts are within what luck explains"),
        (20, 2, "Luck does not explain that: images were told apart"),
    ],
)
def test_the_counts_are_told_from_luck(
    folder: Path, hits: int, control_hits: int, words: str
) -> None:
    save_exposure(folder, many(hits, control_hits))
    told = " ".join(Page(build_site_page(folder).read_text()).words.split())
    assert f"in {hits} of 48 tries, the control in {control_hits} of 48" in told
    assert words in told and "is no luck" not in told
    assert "it may see a leak where these counts show none" in told


def test_the_same_image_in_every_round_counts_once() -> None:
    luck = luck_of([replace(many(3, 0), round=number) for number in range(9)])
    assert luck is not None
    assert (luck.tries.hits, luck.tries.tries, luck.images.hits, luck.images.tries) == (
        27,
        432,
        3,
        48,
    )
    assert (
        not luck.tries.by_luck
        and luck.images.by_luck
        and luck.images.how_often == ("one time in 8")
    )
    assert luck_of([exposure([3], [(0.9, 0.8, 1)], None)]) is None


def test_a_recovered_image_is_not_called_luck(folder: Path) -> None:
    save_exposure(folder, many(1, 0, recovered=0.9))
    told = " ".join(Page(build_site_page(folder).read_text()).words.split())
    assert "That 48 were recovered, and none from the control, is no luck." in told


def test_the_distribution_over_the_images_is_drawn(folder: Path) -> None:
    save_exposure(folder, FIRST)
    save_exposure(folder, SECOND)
    assert most_recovered([FIRST, SECOND], "real") == pytest.approx([0.5, 0.8])
    assert most_recovered([FIRST, SECOND], "control") == pytest.approx([0.1, 0.55, 0.6])
    (drawn,) = (
        label
        for tag, attributes in Page(build_site_page(folder).read_text()).tags
        if tag == "svg" and (label := attributes.get("aria-label"))
    )
    assert "Update: 0.50, 0.80; control: 0.10, 0.55, 0.60." in drawn


def test_an_image_that_no_guess_leaves_anything_to_recover_of_comes_last() -> None:
    rows = [(1.0, NAN, 2.0), (0.1, -0.5, 80.0), (0.4, 0.3, 2.0)]
    assert by_exposure(exposure([0, 1, 2], rows, None).each) == [2, 1, 0]


def test_without_a_control_none_is_counted() -> None:
    found = most_exposed([exposure([3], [(0.9, 0.8, 1)], None)], 5)
    assert found.images[0].control == Tally(0, 0, 0) and found.recognised_by_control == 0


def test_exposures_survive_on_disk_for_their_owner_alone(folder: Path) -> None:
    file = save_exposure(folder, SECOND)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    save_exposure(folder, FIRST)
    (folder / "exposures" / "round-9-matching.npz").write_bytes(b"half a file")
    (first, second), damaged = read_exposures(folder)
    assert damaged == 1 and (first.round, second.round) == (0, 1)
    assert second.positions.tolist() == [5, 8, 3] and second.pictures.names == [
        "/data/scan-5",
        "/data/scan-3",
    ]
    np.testing.assert_array_equal(second.pictures.truths, SECOND.pictures.truths)
    torch.testing.assert_close(
        second.each.real.rank.double(), SECOND.each.real.rank, equal_nan=True
    )


class Page(HTMLParser):
    """What a browser would fetch, and what somebody who does not see would hear."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def log(folder: Path, name: str, *entries: dict[str, Any]) -> None:
    lines = [json.dumps({"time": "2026-01-02T03:04:05+0000", **entry}) for entry in entries]
    (folder / name).write_text("\n".join(lines) + "\n")


TOLD = {"n_images": 2, "ssim": 0.53, "prior_ssim": 0.2, "psnr": 17.4, "mse": 0.018, "rdlv": -0.19}
TOLD |= {"recovered": 0.47, "leakage": 0.0, "reid": 0.5, "rank": 1.5, "gallery": 100}


@pytest.fixture
def page(folder: Path) -> Page:
    save_exposure(folder, FIRST)
    save_exposure(folder, SECOND)
    save_exposure(
        folder, exposure([4], [(0.2, 0.1, 5)], None, number=2, attack="matching", name=HOSTILE)
    )
    asked = {"asked_by": "<b>server</b>", "round": 0, "attack": "batchnorm"}
    log(
        folder,
        "answers.log",
        {**asked, "status": "ok", "reason": "", "real": TOLD, "control": None, "prior": None},
        {**asked, "status": "refused", "reason": "answered before"},
    )
    log(folder, "scalars.log", {"round": 4, "scalars": {"valid/auc": 0.8125, "valid/accuracy": 1}})
    log(folder, "guard.log", {"task": "train", "verdict": "blocked", "reason": "no receipt"})
    log(folder, "gate.log", {"round": 1, "verdict": "withheld", "recovered": 0.61})
    with (folder / "guard.log").open("a") as stream:
        stream.write('{"half": ')
    (folder / "rounds").mkdir()
    for number in (0, 1, 2, 4, 5):
        (folder / "rounds" / f"{number}.json").write_text("{}")
    return Page(build_site_page(folder).read_text())


def test_its_words_are_explained_and_nothing_is_minus_nought(folder: Path) -> None:
    save_exposure(folder, exposure([3], [(-0.001, -0.002, 4)], None))
    log(folder, "answers.log", {"real": TOLD | {"leakage": -0.0}, "prior": TOLD})
    html = build_site_page(folder).read_text()
    words = Page(html).words
    for term in (
        "Control",
        "Starting picture",
        "Re-identified, rank",
        "Recovered fraction",
        "SSIM",
    ):
        assert f"\n{term}\n" in words
    assert "-0.00" not in html and ">-0<" not in html
    assert "prior" not in words.lower()


def test_the_job_is_called_by_its_name(folder: Path) -> None:
    save_exposure(folder, FIRST)
    assert "job-1" in Page(build_site_page(folder).read_text()).words
    (folder / "job.json").write_text(json.dumps({"name": "chest films"}))
    assert "chest films (job-1)" in Page(build_site_page(folder).read_text()).words
    (folder / "job.json").write_text(json.dumps({"name": None}))
    assert "None" not in Page(build_site_page(folder).read_text()).words


def test_only_its_owner_reads_it(page: Page, folder: Path) -> None:
    target = folder / "report" / "index.html"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert stat.S_IMODE(target.parent.stat().st_mode) == 0o700
    target.parent.chmod(0o755)
    build_site_page(folder)
    assert stat.S_IMODE(target.parent.stat().st_mode) == 0o700
    assert [file.name for file in target.parent.iterdir()] == ["index.html"]


def test_it_fetches_nothing_and_runs_nothing(page: Page, folder: Path) -> None:
    html = (folder / "report" / "index.html").read_text()
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert page.all("img") and all(
        (image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img")
    )
    assert all((link["href"] or "").startswith("#") for link in page.all("a"))
    # What a figure points at is in it.
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html and "srcset" not in html
    assert not [tag for tag, attributes in page.tags if any(a.startswith("on") for a in attributes)]


def test_names_and_patients_stand_there_and_cannot_break_out(page: Page) -> None:
    assert f"{HOSTILE}-4" in page.words and "MRN-3" in page.words and "<b>server</b>" in page.words


def test_it_can_be_heard(page: Page) -> None:
    assert all(image["alt"] for image in page.all("img"))
    assert len({image["alt"] for image in page.all("img")}) == len(page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(link["href"] or "")[1:] for link in page.all("a")} <= set(ids)


def test_it_tells_what_left_and_what_was_decided(page: Page) -> None:
    for words in ("0.53", "-0.19", "answered before", "auc 0.8125, accuracy 1", "no receipt"):
        assert words in page.words
    assert "withheld" in page.words and "recovered 0.61" in page.words
    assert "site-7" in page.words and "job-1" in page.words
    assert "rounds 4 to 5 no reconstruction was scored" in page.words
    assert "1 file or line of a log" in page.words


def test_its_pictures_are_the_images(page: Page) -> None:
    by_words = {image["alt"]: image["src"] or "" for image in page.all("img")}
    data = base64.b64decode(by_words["Image 3: true image"].partition(",")[2])
    shown = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    np.testing.assert_array_equal(shown, FIRST.pictures.truths[0])
    assert "Image 3: control" in by_words
    assert "Image 4: control" not in by_words, "there was none"


def test_the_number_of_images_that_are_left_out_is_told(folder: Path) -> None:
    rows: list[Row] = [(0.1, index / 100, 2.0) for index in range(40)]
    save_exposure(folder, exposure(list(range(40)), rows, None))
    page = Page(build_site_page(folder).read_text())
    shown = [image["alt"] for image in page.all("img") if "true image" in (image["alt"] or "")]
    assert shown == [f"Image {position}: true image" for position in range(39, 15, -1)]
    assert "16 further images" in page.words


def test_an_update_that_nobody_could_score_is_told_as_such(folder: Path) -> None:
    (folder / "rounds").mkdir()
    (folder / "rounds" / "0.json").write_text("{}")
    log(folder, "answers.log", {"status": "refused", "reason": "this site's policy closes scoring"})
    page = Page(build_site_page(folder).read_text())
    assert "No reconstruction of this site's updates was scored" in page.words
    assert "no sign of safety" in page.words and "policy closes scoring" in page.words
    assert not page.all("img")


def test_pictures_are_kept_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large images the scores of all are kept, and the pictures of a few."""
    most = 3 * 4 * 16 * 16
    monkeypatch.setattr("gradward.report.exposures.MOST_PICTURE_BYTES", most)
    images = torch.rand(30, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    site = ImageSet(images, torch.zeros(30).long(), names=tuple(map(str, range(30))))
    found = score_reconstructions(
        images[:9], None, site, images[0] / 2, images[0] / 2, site, range(30), site, 2
    )
    made = Exposure.of(
        found,
        number=0,
        attack="matching",
        known=True,
        positions=range(30),
        truths=site,
        reconstructions=images[:9],
        control=None,
        prior=images[0] / 2,
    )
    assert made.pictures.truths.shape == made.pictures.reconstructions.shape == (3, 1, 16, 16)
    assert len(made.positions) == 30 and made.each.real.ssim.isnan().sum() == 21
    row = int(made.pictures.rows[0])
    assert made.pictures.names == tuple(str(row) for row in made.pictures.rows)
    np.testing.assert_array_equal(
        made.pictures.truths[0], (images[row].numpy() * 255).round().astype(np.uint8)
    )


def test_the_command_builds_it_from_the_private_folder_alone(folder: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(folder)])
    assert result.exit_code != 0 and "leakage.jsonl" in result.output, (
        "an empty folder is no site's"
    )
    save_exposure(folder, FIRST)
    assert is_site_folder(folder)
    result = CliRunner().invoke(main, ["report", str(folder)])
    assert result.exit_code == 0 and str(folder / "report" / "index.html") in result.output
