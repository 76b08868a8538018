"""What a test of the canary audit looks at, and what it must hold still to compare two runs."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from federation_probes import arrays_in
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import Filter
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

DRAWN_AT = ("gradward.flare.local_round", "gradward.flare.perturber")


class ResultLog(Filter):
    """On the server: task, site, code and digest of every result as it arrives."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        digest = hashlib.sha256()
        for name, array in sorted(arrays_in(shareable), key=lambda item: item[0]):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        entry = {
            "site": fl_ctx.get_peer_context().get_identity_name(),
            "task": fl_ctx.get_prop(FLContextKey.TASK_NAME),
            "code": shareable.get_return_code(),
            "digest": digest.hexdigest(),
        }
        with Path(self.file).open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        return shareable


class FilterAt(Filter):
    """Another filter, at some sites only."""

    def __init__(self, sites: Sequence[str], path: str, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.sites = list(sites)
        self.path = path
        self.arguments = arguments
        module, name = path.rsplit(".", 1)
        self._inner = getattr(importlib.import_module(module), name)(**arguments)

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        if fl_ctx.get_identity_name() not in self.sites:
            return shareable
        result: Shareable = self._inner.process(shareable, fl_ctx)
        return result


class FixedSecrets(FLComponent):
    """At a site: draws that no other run could repeat become the same in every run."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type != EventType.ABOUT_TO_START_RUN:
            return
        for module in DRAWN_AT:
            vars(importlib.import_module(module))["secret_generator"] = lambda: (
                torch.Generator().manual_seed(11)
            )
