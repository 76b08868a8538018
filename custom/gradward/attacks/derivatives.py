"""Second derivatives of what torch computes in one operator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

from gradward.attacks.observation import AttackRefused

_MISSING = re.compile(r"derivative for '?([\w:.]+)'? is not implemented")


@contextmanager
def second_derivatives() -> Iterator[None]:
    """Compute attention in operators that torch differentiates twice.

    Raises:
        AttackRefused: another operator's derivative is asked for that torch does not have.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:
        if missing := _MISSING.search(str(error)):
            raise AttackRefused(
                f"torch has no derivative of {missing[1]}, which this attack needs; a network "
                "without that operator can be attacked"
            ) from error
        raise
