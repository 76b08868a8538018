"""How the tests share two processes."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling


class FederationsInTurn(LoadScopeScheduling):
    """Keeps a file's tests in one process, for their fixtures, and federations apart.

    Deployed federations share ports, and two simulators at once only wait for each other.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        kind = file.split("/")[1]
        return file if kind == "unit" else kind


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FederationsInTurn:
    """Let pytest-xdist deal the tests out so."""
    return FederationsInTurn(config, log)
