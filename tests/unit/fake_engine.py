"""The little of NVFlare's engine that an executor asks for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext


class FakeEngine:
    """Components by id, and a workspace below a folder."""

    def __init__(self, root: Path, components: dict[str, FLComponent]) -> None:
        self.components = components
        self.root = root

    def get_component(self, component_id: str) -> FLComponent | None:
        return self.components.get(component_id)

    def get_workspace(self) -> Any:
        return SimpleNamespace(
            get_root_dir=lambda: str(self.root),
            get_run_dir=lambda job: str(self.root / job),
            get_job_meta_path=lambda job: str(self.root / job / "meta.json"),
        )

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Nobody listens."""


def context(root: Path, components: dict[str, FLComponent], site: str = "site-1") -> FLContext:
    """Return a context as an executor of ``site`` gets it in job ``job-1``."""
    fl_ctx = FLContext()
    for key, value in (
        (ReservedKey.ENGINE, FakeEngine(root, components)),
        (ReservedKey.IDENTITY_NAME, site),
        (ReservedKey.RUN_NUM, "job-1"),
    ):
        fl_ctx.set_prop(key, value, private=True, sticky=False)
    peer = FLContext()
    peer.set_prop(ReservedKey.IDENTITY_NAME, "server", private=False)
    fl_ctx.set_peer_context(peer)
    return fl_ctx
