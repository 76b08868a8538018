"""The documentation leads nowhere that is not there, and names no command that nobody runs."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from gradward import __version__
from gradward.cli import main

from .docs_commands import COMMANDS
from .docs_pages import PAGES, ROOT, anchors, blocks, commands, links, prose, read, scripts

REPOSITORY_WORDS = re.compile(r"`((?:docs|jobs|poc|tests|benchmarks|custom)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_lead_somewhere(page: str) -> None:
    here = ROOT / page
    for link in links(page):
        if re.match(r"[a-z]+://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (here.parent / path).resolve() if path else here
        assert target.exists(), f"{page} links to {link}, which is not there"
        if anchor and target.suffix == ".md":
            known = anchors(str(target.relative_to(ROOT)))
            assert anchor in known, f"{page} links to {link}; its anchors are {sorted(known)}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    named = REPOSITORY_WORDS.findall(prose(page))
    missing = [name for name in named if not (ROOT / name.rstrip("/.")).exists()]
    assert not missing, f"{page} names {missing}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run_by_somebody(page: str) -> None:
    there = commands(page) + [f"python {number}" for number in range(len(scripts(page)))]
    listed = COMMANDS.get(page, {})
    missing = [command for command in there if command not in listed]
    assert not missing, f"say in tests/unit/docs_commands.py who runs {missing} of {page}"
    stale = [command for command in listed if command not in there]
    assert not stale, f"tests/unit/docs_commands.py knows {stale}, which {page} has no more"


def test_whoever_runs_a_command_exists() -> None:
    for page, listed in COMMANDS.items():
        for command, who in listed.items():
            found = re.match(r"(tests/[\w/]+\.py)(?:::(\w+))?", who)
            assert found, f"{who!r}, which shall run {command!r} of {page}, is no test"
            code = (ROOT / found[1]).read_text(encoding="utf-8")
            assert found[2] is None or f"def {found[2]}(" in code, f"there is no {found[0]}"


def test_every_page_is_on_the_map() -> None:
    """A page that docs/README.md does not name is found by nobody."""
    named = set(links("docs/README.md"))
    missing = [page for page in PAGES[1:] if Path(page).name not in {*named, "README.md"}]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_the_options_that_they_are_given(page: str) -> None:
    spans = [text for text in re.findall(r"`(gradward [^`]+)`", prose(page)) if "--" in text]
    for command in [*commands(page), *spans]:
        words = shlex.split(command.replace("...", ""))
        if words[0] != "gradward":
            continue
        named = main.commands.get(words[1])
        assert named is not None, f"{page}: there is no {' '.join(words[:2])}"
        known = {
            name
            for option in named.params
            if isinstance(option, click.Option)
            for name in option.opts
        }
        unknown = {word for word in words if word.startswith("--")} - known
        assert not unknown, f"{page}: {' '.join(words[:2])} has no {sorted(unknown)}"


@pytest.mark.parametrize("page", PAGES)
def test_benchmarks_and_scripts_exist(page: str) -> None:
    spans = re.findall(r"`python ((?:benchmarks|docs)/\w[\w/]*\.py)([^`]*)`", read(page))
    for script, arguments in spans:
        assert (ROOT / script).is_file(), f"{page}: there is no {script}"
        code = (ROOT / script).read_text(encoding="utf-8")
        for option in re.findall(r"--[a-z-]+", arguments):
            assert f'"{option}"' in code, f"{page}: {script} has no {option}"


def test_make_has_every_target() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for target in re.findall(r"`make ([a-z][\w-]*)`", read(page)):
            assert target in targets, f"{page}: there is no `make {target}`"


@pytest.mark.parametrize("page", PAGES)
def test_python_is_python_and_json_is_json(page: str) -> None:
    for script in scripts(page):
        ast.parse(script)
    for block in blocks(page):
        if block.language == "json":
            # A block may hold several objects one after the other, as parts of a file.
            for part in re.split(r"\n\n(?=\{)", block.text):
                yaml.safe_load(part)


def test_every_figure_has_its_command() -> None:
    """Every picture of the documentation and every report of a benchmark is in benchmarks.md."""
    named = {(ROOT / "docs" / link).resolve() for link in links("docs/benchmarks.md")}
    figures = [*(ROOT / "docs").glob("*.png"), *(ROOT / "benchmarks" / "results").rglob("*.png")]
    figures += (ROOT / "benchmarks" / "results").rglob("*.md")
    missing = [
        figure.name for figure in figures if figure not in named and "sheets" not in figure.parts
    ]
    assert not missing, f"docs/benchmarks.md has no command for {missing}"


def test_the_citation_can_be_used() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert {"message", "title", "authors", "license"} <= set(citation)
    assert citation["version"] == __version__
    urls = [reference["url"] for reference in citation["references"]]
    assert urls == ["https://arxiv.org/abs/2202.06924", "https://arxiv.org/abs/2503.16542"]
    for entry in (citation, *citation["references"]):
        assert entry["title"] and entry["type"] in ("software", "article")
        assert all("name" in author or "family-names" in author for author in entry["authors"])


def test_the_changelog_tells_of_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dates = dict(re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", text, re.MULTILINE))
    assert __version__ in dates
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (\w+)$", text, re.MULTILINE)) <= known
