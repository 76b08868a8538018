"""How the tests share two processes."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one process, for their fixtures, and federations apart.

    Deployed federations share ports, and two simulators at once only wait for each other.
    """
    for item in items:
        kind, *rest = item.path.relative_to(TESTS).parts
        group = "/".join((kind, *rest)) if kind == "unit" else kind
        item.add_marker(pytest.mark.xdist_group(group))
