"""What went wrong in a simulated run, in one line instead of NVFlare's long logs."""

from __future__ import annotations

import re
import signal
from collections import defaultdict
from pathlib import Path

ERROR_LOG = "error_log.txt"
SERVER = "server"

# 2026-11-22 08:38:46,422 - LocalTrainer - ERROR - [identity=site-1, ...] - cannot carry out ...
_ENTRY = re.compile(r"^(\d{4}-\S+ \S+) - \S+ - (?:ERROR|CRITICAL) - (?:\[[^\]]*\] - )?(.+)$")
_CONFIG_ERROR = re.compile(
    r"Error processing '[^']*?([^/']+)' in element '(.*)': path: '([^']+)', exception: '(.+)'$"
)
_CLASS = re.compile(r'"path": "([^"]+)"')
_PYTHON_ERROR = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception): .+)$")
# What NVFlare puts around the reason, and what follows from another error.
_WRAPPING = re.compile(
    r"^(?:TypeError: Can't load class \S+: |ValueError: Class \S+ has parameters error: )"
)
_CONSEQUENCES = ("Traceback ", "Aborting current RUN", "abort signal")


def troubles(workspace: Path) -> list[str]:
    """Return the first error of each party of a run, earliest first.

    Parties with the same error share a line: ``"site-1, site-3: cannot carry out 'train': ..."``.
    An error in the job's configuration is told by file and place in it.

    Args:
        workspace: of NVFlare's simulator; a party without a log of errors had none.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for when, party, message in sorted(
        (when, log.parent.name, message)
        for log in workspace.glob(f"*/{ERROR_LOG}")
        for when, message in _first_error(log)
    ):
        del when
        found[message].append(party)
    return [f"{', '.join(sorted(parties))}: {message}" for message, parties in found.items()]


def why_it_ended(code: int, workspace: Path, log: Path) -> str:
    """Return the reason for the end of a run, as far as its logs tell it.

    Args:
        code: the simulator's exit code.
        workspace: of the simulator.
        log: what the simulator printed.
    """
    if told := troubles(workspace):
        return told[0]
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps because memory ran short; try --threads 1" if name == "SIGKILL" else ""
        return f"the simulator was ended by {name}{hint}"
    errors = [_PYTHON_ERROR.match(line) for line in _lines(log)]
    last = next((match.group(1) for match in reversed(errors) if match), None)
    return last or f"the simulator ended with code {code} and told no reason"


def _first_error(log: Path) -> list[tuple[str, str]]:
    """Return time and message of a log's first error that is no consequence, in a list or none."""
    for line in _lines(log):
        entry = _ENTRY.match(line)
        if entry and not entry.group(2).startswith(_CONSEQUENCES):
            return [(entry.group(1), _in_short(entry.group(2)))]
    return []


def _in_short(message: str) -> str:
    if (error := _CONFIG_ERROR.search(message)) is None:
        return message
    file, element, place, reason = error.groups()
    name = _CLASS.search(element)
    where = f"{place} ({name.group(1)})" if name else place
    return f"{file}, {where}: {_WRAPPING.sub('', reason).rstrip('.')}"


def _lines(log: Path) -> list[str]:
    try:
        return log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
