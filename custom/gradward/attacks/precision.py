"""In how few digits an update came, so that its control is attacked in no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradward.training import State


@dataclass(frozen=True)
class Precision:
    """How an update was rounded when it was sent or saved.

    Attributes:
        types: of its tensors, by name.
        of_state: whether they hold the client's full state: that rounds the weights, which loses
            more of what training changed than rounding the changes does.
    """

    types: Mapping[str, torch.dtype]
    of_state: bool

    @classmethod
    def of(cls, sent: Mapping[str, Any], of_state: bool) -> Precision:
        """Read it from tensors or arrays by name."""
        return cls({name: torch.as_tensor(value).dtype for name, value in sent.items()}, of_state)

    def coarser_than(self, state: Mapping[str, Tensor]) -> list[str]:
        """Return the types, such as ``"float16"``, that have fewer digits than those of a state."""
        coarser = {
            kind
            for name, kind in self.types.items()
            if name in state and _is_coarser(kind, state[name].dtype)
        }
        return sorted(str(kind).removeprefix("torch.") for kind in coarser)

    def round(self, change: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> State:
        """Round another update alike.

        Args:
            change: after - before, by name.
            before: the state where it began.

        Returns:
            What is left of ``change``; where no digit is lost, the same tensors.
        """
        return {name: self._rounded(name, value, before[name]) for name, value in change.items()}

    def _rounded(self, name: str, change: Tensor, before: Tensor) -> Tensor:
        kind = self.types.get(name, change.dtype)
        if not _is_coarser(kind, change.dtype):
            return change
        start = before.double() if self.of_state else torch.zeros_like(before).double()
        return (start + change.double()).to(kind).double() - start


def _is_coarser(kind: torch.dtype, than: torch.dtype) -> bool:
    if not (kind.is_floating_point and than.is_floating_point):
        return False
    return torch.finfo(kind).eps > torch.finfo(than).eps
