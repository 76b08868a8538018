"""What the trainer answers with: states beside the receipts that vouch for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from gradward.defenses.noise import load_secret
from gradward.flare.analytics import record_scalars
from gradward.flare.canary import CANARY_IMAGES_META
from gradward.flare.local_round import LocalRound
from gradward.flare.perturber import PerturbedImages
from gradward.flare.receipt import (
    DP_SGD,
    RECEIPT_META,
    UNDEFENDED,
    Receipt,
    identify_task,
    state_digest,
    tensor_digests,
)
from gradward.flare.site import Site
from gradward.flare.states import as_arrays
from gradward.training import LocalRun, State, state_difference

LOCAL_MODEL = "local_model.pt"


def training_result(
    fl_ctx: FLContext, local: LocalRound, run: LocalRun, perturbed: PerturbedImages | None
) -> Shareable:
    """Pack the update of one round with its receipt, and keep the local model for later.

    Args:
        fl_ctx: of the task.
        local: the round, trained.
        run: what the training did.
        perturbed: what it trained on; None for raw images.
    """
    after = local.after
    update, receipt = _vouched(fl_ctx, local, after, run, perturbed)
    torch.save({"state": after, "receipt": receipt}, local.site.job_folder / LOCAL_MODEL)
    return _pack(DataKind.WEIGHT_DIFF, update, _told(run, receipt))


def canary_result(
    fl_ctx: FLContext, local: LocalRound, run: LocalRun, perturbed: PerturbedImages | None
) -> Shareable:
    """Pack a canary update with a receipt and the number of images behind it; keep nothing.

    Args: as :func:`training_result`.
    """
    update, receipt = _vouched(fl_ctx, local, local.after, run, perturbed)
    meta = _told(run, receipt) | {CANARY_IMAGES_META: len(run.images_seen)}
    return _pack(DataKind.WEIGHT_DIFF, update, meta)


def local_model_result(fl_ctx: FLContext, site: Site) -> Shareable | None:
    """Pack the model of the latest round; its receipt tells of that round. None before any.

    Raises:
        ReceiptError: the kept model's receipt is not of this site.
    """
    file = site.job_folder / LOCAL_MODEL
    if not file.is_file():
        return None
    kept = torch.load(file, weights_only=True)
    state = as_arrays(kept["state"])
    secret = load_secret(site.private)
    of_training = Receipt.verify(kept["receipt"], secret)
    receipt = replace(of_training, **identify_task(fl_ctx), tensors=tensor_digests(state))
    return _pack(DataKind.WEIGHTS, state, {RECEIPT_META: receipt.sign(secret)})


def forget_local_model(site: Site) -> None:
    """Keep the model of a withheld update from leaving as the answer to ``submit_model``.

    Raises:
        OSError: it cannot be removed.
    """
    (site.job_folder / LOCAL_MODEL).unlink(missing_ok=True)


def metrics_result(fl_ctx: FLContext, task: str, metrics: Mapping[str, float]) -> Shareable:
    """Pack what a model scored, once the site's private log of scalars has it.

    Args:
        fl_ctx: of the task.
        task: its name.
        metrics: value by name.

    Raises:
        OSError: they cannot be entered.
    """
    record_scalars(fl_ctx, {f"{task}/{name}": value for name, value in metrics.items()}, None)
    return DXO(DataKind.METRICS, data=dict(metrics)).to_shareable()


def _pack(kind: str, state: Mapping[str, Any], meta: Mapping[str, Any]) -> Shareable:
    return DXO(kind, data=dict(state), meta=dict(meta)).to_shareable()


def _vouched(
    fl_ctx: FLContext,
    local: LocalRound,
    after: State,
    run: LocalRun,
    perturbed: PerturbedImages | None,
) -> tuple[dict[str, Any], str]:
    """Return the update as arrays, and the receipt for it, signed with the site's secret."""
    update = as_arrays(state_difference(after, local.before))
    undefended = UNDEFENDED if local.settings.dp_sgd is None else DP_SGD
    receipt = Receipt(
        **identify_task(fl_ctx),
        round=local.number,
        model=state_digest(local.assignment.received),
        mode=undefended if perturbed is None else perturbed.mode,
        version="" if perturbed is None else perturbed.version,
        raw_samples=run.raw_samples,
        perturbed_samples=run.perturbed_samples,
        steps=len(run.batches),
        tensors=tensor_digests(update),
    )
    return update, receipt.sign(load_secret(local.site.private))


def _told(run: LocalRun, receipt: str) -> dict[str, Any]:
    return {MetaKey.NUM_STEPS_CURRENT_ROUND: len(run.batches), RECEIPT_META: receipt}
