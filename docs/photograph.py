"""Photographs the pages of a finished run for the documentation; `make photographs` calls it.

    python docs/photograph.py runs/quickstart

It needs requirements-dev.txt and a Chromium: on PATH, or by `playwright install chromium`.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PORT = 16006
PATIENCE = 60.0
# A third of the size. Cut by the median instead, even so many turn a rare colour, the control's
# ochre, into the red of a leak.
COLOURS, METHOD = 256, Image.Quantize.MAXCOVERAGE


def photograph_report(browser: Browser, run: Path) -> None:
    """Take the server's report down to its last verdict."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto((run / "report" / "index.html").resolve().as_uri())
    last = page.locator("#verdicts .card").last.bounding_box()
    if last is None:
        raise ValueError(f"the report of {run} has no verdict; run the job again")
    seen = {"x": 0, "y": 0, "width": 1280, "height": last["y"] + last["height"] + 8}
    _keep(page.screenshot(clip=seen, full_page=True), "report-verdicts.png")


def photograph_tensorboard(browser: Browser, run: Path) -> None:
    """Take TensorBoard's first screen, its curves as they are."""
    with tensorboard(run / "tb_events") as address:
        page = browser.new_page(viewport={"width": 1300, "height": 700})
        # Smoothed, a line of three rounds lies where no value is.
        page.goto(f"{address}/#custom_scalars&_smoothingWeight=0")
        page.wait_for_selector("text=attack and control", timeout=1000 * PATIENCE)
        # The curves come after their titles.
        page.wait_for_timeout(5000)
        _keep(page.screenshot(), "tensorboard-first-screen.png")


def _keep(picture: bytes, name: str) -> None:
    small = Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS, METHOD)
    small.save(HERE / name, optimize=True)


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Serve a folder and yield the address.

    Raises:
        TimeoutError: it does not answer.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--port", str(PORT), "--load_fast", "false"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            yield _answering(f"http://localhost:{PORT}")
        finally:
            server.terminate()


def _answering(address: str) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address):
                return address
        except urllib.error.URLError:
            time.sleep(0.5)
    raise TimeoutError(f"TensorBoard does not answer at {address}; is the port taken?")


def main() -> None:
    """Photograph the run that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    run = parser.parse_args().run
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, BROWSERS)), None)
        # Chromium's sandbox does not start for root, as whom containers run.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        photograph_report(browser, run)
        photograph_tensorboard(browser, run)
        browser.close()


if __name__ == "__main__":
    main()
