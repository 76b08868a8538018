"""BatchNorm's running statistics, as tensors of a state and as layers of a model."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BATCHNORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def is_batchnorm_buffer(name: str) -> bool:
    """Whether a tensor of a state is one of BatchNorm's running statistics or counters."""
    return name.rpartition(".")[2] in BATCHNORM_BUFFERS


def has_statistics(module: nn.Module) -> bool:
    """Whether a layer is BatchNorm with running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None
