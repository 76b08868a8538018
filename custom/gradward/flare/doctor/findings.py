"""What the doctor found, and the kit it looks at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvflare.apis.workspace import Workspace

from gradward.flare.policies import Policies, SiteSettingsError, read_policies
from gradward.flare.site import read_settings

OK, ATTENTION, PROBLEM = "ok", "attention", "problem"
_STARTUP_FILES = {"fed_client.json": "site", "fed_server.json": "server"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: :data:`OK`, :data:`ATTENTION` (it may be meant) or :data:`PROBLEM`.
        topic: what was looked at.
        text: how it is.
        remedy: what to do about it, in lines that can be copied.
    """

    level: str
    topic: str
    text: str
    remedy: str = ""


class KitProblem(Exception):
    """The kit cannot be looked at further; holds the finding that says why."""

    def __init__(self, topic: str, text: str, remedy: str) -> None:
        super().__init__(text)
        self.finding = Finding(PROBLEM, topic, text, remedy)


@dataclass(frozen=True)
class Kit:
    """The startup kit of a site or a server.

    Attributes:
        folder: that holds ``startup`` and ``local``.
        role: ``"site"`` or ``"server"``.
        name: of the party, by which ``sites.<name>`` in its settings goes.
        resources: what ``local/resources.json``, or its default, holds.
        settings: what ``local/gradward.json`` holds for this party.
        policies: that it decides by.
    """

    folder: Path
    role: str
    name: str
    resources: dict[str, Any]
    settings: dict[str, Any]
    policies: Policies

    @property
    def workspace(self) -> Workspace:
        """As NVFlare looks at the kit."""
        return Workspace(str(self.folder), self.name)

    @classmethod
    def open(cls, folder: Path) -> Kit:
        """Read the kit in ``folder``.

        Raises:
            KitProblem: it is none, or one of its files cannot be used.
        """
        found = [file for file in _STARTUP_FILES if (folder / "startup" / file).is_file()]
        if len(found) != 1 or not (folder / "local").is_dir():
            raise KitProblem(
                "startup kit",
                "this folder is not that of a site or a server",
                "give the folder that holds its 'startup' and 'local'",
            )
        role = _STARTUP_FILES[found[0]]
        try:
            startup = json.loads((folder / "startup" / found[0]).read_text(encoding="utf-8"))
            name = startup["client"]["fqsn"] if role == "site" else startup["servers"][0]["name"]
            file = Path(Workspace(str(folder)).get_resources_file_path())
            resources = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise KitProblem(
                "startup kit",
                f"its startup or resources file cannot be read ({type(error).__name__})",
                "restore local/resources.json, or have the kit provisioned anew",
            ) from None
        try:
            settings = read_settings(folder / "local", name)
            policies = read_policies(settings)
        except SiteSettingsError as error:
            raise KitProblem("gradward.json", str(error), "correct local/gradward.json") from None
        return cls(folder, role, name, resources, settings, policies)


def table(findings: Sequence[Finding]) -> str:
    """Return the findings as lines, each remedy below what it is for."""
    width = max(len(finding.topic) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<10} {finding.topic:<{width}}  {finding.text}")
        lines += [f"{'':<10} {'':<{width}}  {line}" for line in finding.remedy.splitlines()]
    return "\n".join(lines)
