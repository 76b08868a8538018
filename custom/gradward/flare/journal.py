"""The journals that a site keeps for its privacy officer; they never leave its private folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def note(file: Path, entry: Mapping[str, Any]) -> None:
    """Append ``entry`` with its time, as one line of JSON that only this user can read.

    Raises:
        OSError: it cannot be written.
    """
    stamped = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **entry}
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(stamped) + "\n")
