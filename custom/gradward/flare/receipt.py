"""What a site states about its own update: the trainer writes it, the guard reads it.

A receipt binds the counts of raw and perturbed samples to one task and to the bits of one update.
Its MAC is made with the site's secret, so that neither an old receipt, nor one copied from another
update, nor an update changed after it passes. It guards against mistakes and wrong configuration
inside a process that is trusted, not against job code that lies to itself.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

RECEIPT_META = "gradward_receipt"
MODE_META = "perturbation_mode"
PERTURBED_META = "perturbed_samples"
UNDEFENDED = "none"
DP_SGD = "dp-sgd"

# What a server calls training on raw images; a receipt's "none" is the absence of a mode.
STATED_UNDEFENDED = "undefended"

_ASSIGNMENT = "gradward_assignment"
_MOST_LETTERS = 40
# The site's secret also keys the frozen noise: each use has a key of its own.
_PURPOSE = b"gradward receipt 1"


class ReceiptError(ValueError):
    """A receipt that this site did not write, or not in this form."""


@dataclass(frozen=True)
class Assignment:
    """The training task that the trainer works on, kept in NVFlare's context until it is answered.

    Attributes:
        round: its number.
        received: the global state as the server sent it, arrays by name.
    """

    round: int
    received: Mapping[str, Any]


def note_assignment(fl_ctx: FLContext, assignment: Assignment) -> None:
    """Leave the assignment for the filters that run after the trainer; it never travels."""
    fl_ctx.set_prop(_ASSIGNMENT, assignment, private=True, sticky=False)


def assignment_of(fl_ctx: FLContext) -> Assignment | None:
    """Return the assignment of the task that ``fl_ctx`` belongs to, if it is a training task."""
    found = fl_ctx.get_prop(_ASSIGNMENT)
    return found if isinstance(found, Assignment) else None


@dataclass(frozen=True)
class Receipt:
    """One statement about one result.

    Attributes:
        job, site, task, task_id: which result of which task this is.
        round: of the local training that made it.
        model: :func:`state_digest` of the global state which that training started from.
        mode: the perturber's; without one :data:`DP_SGD` where the training was that, else
            :data:`UNDEFENDED`.
        version: the perturber's; empty without one.
        raw_samples: samples trained on as they are, counted at each use.
        perturbed_samples: samples that a perturber made, counted at each use.
        steps: optimiser steps.
        tensors: :func:`tensor_digest` of each tensor of the result.
    """

    job: str
    site: str
    task: str
    task_id: str
    round: int
    model: str
    mode: str
    version: str
    raw_samples: int
    perturbed_samples: int
    steps: int
    tensors: dict[str, str]

    def sign(self, secret: bytes) -> str:
        """Return the receipt as text, authenticated with the site's secret."""
        statement = json.dumps(asdict(self), sort_keys=True)
        return json.dumps({"statement": statement, "mac": _mac(secret, statement)})

    @classmethod
    def verify(cls, text: Any, secret: bytes) -> Receipt:
        """Read what :meth:`sign` wrote.

        Raises:
            ReceiptError: it is none, or was signed with another secret.
        """
        try:
            outer = json.loads(text)
            statement, mac = outer["statement"], outer["mac"]
            genuine = hmac.compare_digest(_mac(secret, statement), mac)
            values = json.loads(statement)
        except (TypeError, ValueError, KeyError, AttributeError):
            raise ReceiptError("the receipt is not readable") from None
        if not genuine:
            raise ReceiptError("the receipt is not signed by this site")
        if set(outer) != {"statement", "mac"} or set(values) != {item.name for item in fields(cls)}:
            raise ReceiptError("the receipt has missing or unknown entries")
        return cls(**values)


def stated_mode(meta: Mapping[str, Any]) -> str | None:
    """Return what a site states that its update was trained on, as the server may read it.

    Args:
        meta: of a received update. A guard tells the mode; where there is none, the receipt
            travels along.

    Returns:
        The mode, :data:`STATED_UNDEFENDED` for raw images; None where the site states nothing. It
        is the site's word: only the site itself can verify a receipt.
    """
    mode = meta.get(MODE_META)
    if mode is None:
        try:
            mode = json.loads(json.loads(meta[RECEIPT_META])["statement"])["mode"]
        except (KeyError, TypeError, ValueError):
            return None
    if type(mode) is not str or len(mode) > _MOST_LETTERS or not mode.isprintable():
        return None
    return STATED_UNDEFENDED if mode == UNDEFENDED else mode


def identify_task(fl_ctx: FLContext) -> dict[str, Any]:
    """Return what a receipt says about its task, as NVFlare's context has it."""
    return {
        "job": str(fl_ctx.get_job_id()),
        "site": str(fl_ctx.get_identity_name()),
        "task": str(fl_ctx.get_prop(FLContextKey.TASK_NAME)),
        "task_id": str(fl_ctx.get_prop(FLContextKey.TASK_ID)),
    }


def tensor_digest(value: Any) -> str:
    """SHA-256 of an array's type, shape and bits."""
    array = np.asarray(value)
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def tensor_digests(state: Mapping[str, Any]) -> dict[str, str]:
    """:func:`tensor_digest` by name."""
    return {name: tensor_digest(value) for name, value in state.items()}


def state_digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of a whole state: names, types, shapes and bits, whatever its order."""
    text = json.dumps(tensor_digests(state), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _mac(secret: bytes, statement: str) -> str:
    key = hmac.digest(secret, _PURPOSE, "sha256")
    return hmac.new(key, statement.encode(), "sha256").hexdigest()
