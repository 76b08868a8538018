"""The pages in a real browser: whole on desk and phone, and fit for assistive tools."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from gradward.report.compare.page import build_comparison
from gradward.report.exposures import save_exposure
from gradward.report.page import build_report
from gradward.report.site_page import build_site_page
from tests.unit.stored_runs import beside_control, write_demo_run, write_run
from tests.unit.test_compare_output import noise_sweep
from tests.unit.test_report_site_page import FIRST, SECOND, TOLD, log

WIDTHS = (1280, 390)
NAMES = ("demo", "awkward", "site", "comparison")
GRAVE = ("serious", "critical")
INSTALLED = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, INSTALLED)), None)
        path = found or playwright.chromium.executable_path
        if not Path(path).is_file():
            pytest.skip(
                f"no browser: neither {', '.join(INSTALLED)} on PATH nor playwright's own "
                "(`playwright install chromium`)"
            )
        # Chromium's sandbox does not start for root, as whom containers run.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report with verdicts, figures, defences and gaps, an awkward one, and the other pages."""
    long = "a-hospital-with-a-name-that-does-not-end-and-has-no-room-to-break"
    awkward = [
        replace(record, reason="no-room-to-break-" * 12, subject="canary")
        for record in beside_control([(0.5, 1.0)], [(0.0, 0.0)], site=long, attack="x" * 70)
    ]
    folders = {name: tmp_path_factory.mktemp(name) for name in ("demo", "awkward")}
    write_demo_run(folders["demo"])
    write_run(folders["awkward"], awkward)
    built = {name: build_report(folder) for name, folder in folders.items()}
    return built | {
        "site": _site_page(tmp_path_factory.mktemp("private")),
        "comparison": _comparison(tmp_path_factory.mktemp("compared")),
    }


def _site_page(root: Path) -> Path:
    folder = root / "site-1" / "jobs" / "job-1"
    folder.mkdir(parents=True)
    save_exposure(folder, FIRST)
    save_exposure(folder, SECOND)
    answer = {"round": 0, "attack": "batchnorm", "asked_by": "server", "reason": ""}
    log(folder, "answers.log", {**answer, "status": "ok", "real": TOLD, "control": TOLD})
    streamed = {"valid/auc": 0.8125} | {f"leakage/batchnorm/{k}": v for k, v in TOLD.items()}
    log(folder, "scalars.log", {"round": 0, "scalars": streamed})
    return build_site_page(folder)


def _comparison(folder: Path) -> Path:
    build_comparison(noise_sweep(folder / "runs"), folder / "out")
    return folder / "out" / "index.html"


def open_page(browser: Browser, file: Path, width: int, **options: Any) -> tuple[Page, list[str]]:
    """Open a file, all its folds open, and return what it did that it should not."""
    page = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("console", lambda message: faults.append(f"console: {message.text}"))
    page.on(
        "request",
        lambda request: request.url == file.as_uri() or faults.append(f"request: {request.url}"),
    )
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    return page, faults


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_a_page_stands_alone_and_fits(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    page, faults = open_page(browser, pages[name], width)
    assert faults == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 90))"
    )
    assert cut == []
    page.context.close()


def test_on_a_phone_neither_scores_nor_logs_lie_outside_the_screen(
    browser: Browser, pages: dict[str, Path]
) -> None:
    page, _ = open_page(browser, pages["site"], 390)
    outside = page.evaluate(
        "[...document.querySelectorAll('.seen table, .log caption, .log td')].filter(e =>"
        " e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 90))"
    )
    assert outside == []
    tall = page.evaluate(
        "Math.max(...[...document.querySelectorAll('#scalars + .scroll tbody tr')].map(row =>"
        " row.getBoundingClientRect().height))"
    )
    assert tall <= 120
    names = page.evaluate(
        "[...document.querySelectorAll('#scalars + .scroll tbody tr:first-child td')].map(cell =>"
        " getComputedStyle(cell, '::before').content)"
    )
    assert [name.strip('"').strip() for name in names] == ["When", "Round", "Under", "Scalars"]
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["demo", "site", "comparison"])
def test_axe_finds_nothing_grave(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    page, _ = open_page(browser, pages[name], width, color_scheme=scheme)
    found = Axe().run(page).response
    rules = {rule["id"] for rule in found["passes"]}
    assert {"color-contrast", "image-alt" if name == "site" else "svg-img-alt"} <= rules
    grave = [rule for rule in found["violations"] if rule["impact"] in GRAVE]
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in grave] == []
    page.context.close()


@pytest.mark.parametrize("name", ["demo", "site", "comparison"])
def test_headings_are_in_order_and_the_skip_link_comes_first(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    page, _ = open_page(browser, pages[name], 1280)
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.tagName") == "MAIN"
    page.context.close()


def test_text_in_figures_is_legible_on_a_phone(browser: Browser, pages: dict[str, Path]) -> None:
    page, _ = open_page(browser, pages["demo"], 390)
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg.plot text')].map(text =>"
        " parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))"
    )
    assert smallest >= 9
    page.context.close()
