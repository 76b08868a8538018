"""The documentation as the tests read it: pages, fenced blocks, commands, headings and links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")))
SHELLS = ("sh", "bash", "console", "shell")
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: behind the fence, "" without.
        text: what is in it.
    """

    language: str
    text: str


def read(page: str) -> str:
    """Return a page's text."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """Return a page's fenced blocks, those in lists with their indentation taken away."""
    found = []
    for indent, language, text in _FENCE.findall(read(page)):
        lines = [line.removeprefix(indent) for line in text.splitlines()]
        found.append(Block(language, "\n".join(lines) + "\n"))
    return found


def commands(page: str) -> list[str]:
    """Return a page's shell commands in their order, without comments and continuations."""
    found = []
    for block in blocks(page):
        if block.language in SHELLS:
            for line in block.text.replace("\\\n", " ").splitlines():
                command = re.sub(r"(^|\s+)#.*", "", line.removeprefix("$ "))
                if command.strip():
                    found.append(" ".join(command.split()))
    return found


def scripts(page: str) -> list[str]:
    """Return a page's Python blocks in their order."""
    return [block.text for block in blocks(page) if block.language == "python"]


def prose(page: str) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found


def links(page: str) -> list[str]:
    """Return what a page links to, pictures included."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))
