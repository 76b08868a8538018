"""Components that integration tests add to a job, shipped with it as ``app/custom``."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.filter import Filter
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet import cell, core_cell
from nvflare.fuel.f3.sfm.sfm_conn import SfmConnection

from gradward.flare.trainer import LocalTrainer


def arrays_in(value: Any, path: str = "") -> list[tuple[str, np.ndarray]]:
    """All arrays in a message, however deep."""
    if isinstance(value, np.ndarray):
        return [(path, value)]
    if hasattr(value, "detach"):
        return [(path, value.detach().cpu().numpy())]
    if isinstance(value, dict):
        return [hit for key, item in value.items() for hit in arrays_in(item, f"{path}/{key}")]
    if isinstance(value, list | tuple):
        return [hit for i, item in enumerate(value) for hit in arrays_in(item, f"{path}/{i}")]
    return []


class SendSpy(FLComponent):
    """Writes down everything this site sends, before and after encoding, below ``folder``."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type != EventType.ABOUT_TO_START_RUN:
            return
        site = fl_ctx.get_identity_name()
        arrays_file = Path(self.folder) / f"{site}.arrays.jsonl"
        bytes_file = Path(self.folder) / f"{site}.bytes"
        for module in (cell, core_cell):
            original = module.encode_payload

            def encode(message: Any, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
                with arrays_file.open("a") as stream:
                    for path, array in arrays_in(message.payload):
                        head = np.ascontiguousarray(array).tobytes()[:256].hex()
                        entry = {"path": path, "shape": list(array.shape), "head": head}
                        stream.write(json.dumps(entry) + "\n")
                return _original(message, *args, **kwargs)

            module.encode_payload = encode
        send_frame = SfmConnection.send_frame

        def send(connection: Any, prefix: Any, headers: Any, payload: Any) -> Any:
            pieces = payload if isinstance(payload, list) else [payload]
            with bytes_file.open("ab") as stream:
                stream.write(repr(headers).encode())
                for piece in pieces:
                    stream.write(bytes(piece or b""))
            return send_frame(connection, prefix, headers, payload)

        SfmConnection.send_frame = send


class ReceiveSpy(Filter):
    """Notes which site's reconstructions arrive where."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        data = from_shareable(shareable).data
        line = {"at": fl_ctx.get_identity_name(), "of": data["site"]}
        with (Path(self.folder) / "received.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        return shareable


class SpoilUpdate(Filter):
    """Spoils the updates of some sites after training, as broken or hostile code would."""

    def __init__(self, faults: dict[str, str]) -> None:
        super().__init__()
        self.faults = faults

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        fault = self.faults.get(fl_ctx.get_identity_name())
        if fault is None:
            return shareable
        dxo = from_shareable(shareable)
        name = next(name for name, value in dxo.data.items() if np.ndim(value) > 1)
        if fault == "nan":
            dxo.data[name] = np.full_like(dxo.data[name], np.nan)
        elif fault == "other model":
            dxo.data = {"other.weight": np.zeros((2, 2), np.float32)}
        return dxo.update_shareable(shareable)


class StopAnswering(Executor):
    """A trainer's twin that answers once and then hangs, at one site."""

    def __init__(self, site: str, from_round: int) -> None:
        super().__init__()
        self.site = site
        self.from_round = from_round
        self._inner = LocalTrainer()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        self._inner.handle_event(event_type, fl_ctx)

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        number = shareable.get_header("current_round", 0)
        if fl_ctx.get_identity_name() == self.site and number >= self.from_round:
            while not abort_signal.triggered:
                time.sleep(0.2)
        return self._inner.execute(task_name, shareable, fl_ctx, abort_signal)


class KillWorker(FLComponent):
    """On the server: kills the attack worker, once, while it attacks."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.START_RUN:
            import threading

            threading.Thread(target=self._kill_one, daemon=True).start()

    def _kill_one(self) -> None:
        import psutil

        own = psutil.Process(os.getpid())
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for child in own.children(recursive=True):
                try:
                    command = child.cmdline()
                    if "gradward.attacks.worker" not in command:
                        continue
                    if any(Path(command[-1]).glob("*/update.npz")):
                        time.sleep(2)
                        child.kill()
                        (Path(self.folder) / "killed").touch()
                        return
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.05)
