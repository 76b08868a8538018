"""Forward hooks for the time of a ``with`` block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from torch.utils.hooks import RemovableHandle


class HookContext(ABC):
    """Hooks a model on entering and leaves it as it was, whatever happened in between."""

    @abstractmethod
    def hook(self) -> list[RemovableHandle]:
        """Register the hooks and return their handles."""

    def __enter__(self) -> Self:
        self._handles = self.hook()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
