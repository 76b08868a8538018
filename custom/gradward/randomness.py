"""What draws from the process's own generators, as dropout does, from a seed instead."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_randomness(seed: int, device: torch.device | str) -> Iterator[None]:
    """Seed the process's global generators, and leave them afterwards as they were before.

    They are those of torch (on the CPU and on ``device``), numpy and Python.
    """
    python, array = random.getstate(), np.random.get_state()
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            np.random.set_state(array)
            random.setstate(python)
