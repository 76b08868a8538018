"""What the server gets to see of each site, written down by the server."""

from __future__ import annotations

import json
from pathlib import Path

from federation_probes import arrays_in
from nvflare.apis.filter import Filter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable


class ArrivalSpy(Filter):
    """A filter of the server's: notes every result as it arrives, before anyone treats it."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        entry = {
            "site": fl_ctx.get_peer_context().get_identity_name(),
            "code": shareable.get_return_code(),
            "parts": sorted(key for key in shareable if key != ReservedHeaderKey.HEADERS),
            "meta": (shareable.get("DXO") or {}).get("meta"),
            "arrays": len(arrays_in(shareable)),
        }
        with Path(self.file).open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        return shareable
