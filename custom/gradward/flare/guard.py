"""The last look at everything that leaves a site as the result of a task."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants

from gradward.batchnorm import is_batchnorm_buffer
from gradward.defenses.noise import load_secret
from gradward.flare.canary import CANARY_IMAGES_META, CANARY_TASK, canary_twin
from gradward.flare.certificate import CERTIFIED_MODES
from gradward.flare.experiment import experiment_of
from gradward.flare.journal import note
from gradward.flare.outgoing import (
    Blocked,
    TensorForm,
    checked_metrics,
    checked_score_reply,
    checked_state,
    comes_in,
    error_reply,
    read_result,
)
from gradward.flare.protocol import SCORE_TASK
from gradward.flare.receipt import (
    DP_SGD,
    MODE_META,
    PERTURBED_META,
    RECEIPT_META,
    UNDEFENDED,
    Receipt,
    ReceiptError,
    assignment_of,
    identify_task,
    state_digest,
    tensor_digests,
)
from gradward.flare.rounds import RoundRecord, recall_round
from gradward.flare.site import Site, open_site, record_private_error
from gradward.report.site_folder import GUARD

METRICS = ("accuracy", "balanced_accuracy", "auc")

_RECEIPT = "gradward_receipt"


@dataclass(frozen=True)
class _Passed:
    """A message built anew for the way out, and what the journal says about it."""

    message: Shareable
    entry: dict[str, Any]


class PerturbationGuard(Filter):
    """Lets a result pass only if it is what its task says, made from perturbed images alone.

    ======================= ======================================================================
    task                    passes
    ======================= ======================================================================
    ``train``               a ``WEIGHT_DIFF`` with the names, shapes and types of the job's model,
                            finite, with a :class:`~gradward.flare.receipt.Receipt` for this very
                            task and these very tensors that counts perturbed samples and no raw one
    ``canary_update``       the same, of public images, by the books of the site's canaries
    ``submit_model``        ``WEIGHTS`` under the same rules, with the receipt of their round
    ``validate``            ``METRICS`` on the list, in [0, 1]
    ``score_reconstruction`` one :class:`~gradward.flare.protocol.ScoreReply`, rounded
    any                     an error reply without data
    ======================= ======================================================================

    Everything else is answered with an error reply: the reason is in the site's log and, like all
    that passed, in its private ``guard.log``. A failure of the guard blocks as well. The receipt
    stays here; the server is told the mode and the number of perturbed samples.

    Configured as ``task_result_filters`` of a job, or of ``local/privacy.json``, where it guards
    jobs that never mention it. It comes before whatever changes an update (noise, pruning): the
    receipt would no longer fit. BatchNorm buffers may be withheld before or after it.

    What it does not see: NVFlare carries analytics (``train/``, ``valid/``, ``defense/`` scalars),
    log lines and events in auxiliary messages, which pass no filter. And it protects against
    mistakes inside a trusted process, not against job code that was written to deceive it.
    """

    def __init__(
        self,
        experiment_id: str = "experiment",
        sites: Sequence[str] | None = None,
        withheld_buffers: bool = False,
        metrics: Sequence[str] = METRICS,
        train_task: str = AppConstants.TASK_TRAIN,
        validate_task: str = AppConstants.TASK_VALIDATION,
        submit_model_task: str = AppConstants.TASK_SUBMIT_MODEL,
    ) -> None:
        """Check every argument.

        Args:
            experiment_id: id of the job's :class:`~gradward.flare.experiment.Experiment`.
            sites: names of the sites that are guarded; None for all.
            withheld_buffers: whether an update may lack BatchNorm buffers.
            metrics: names that ``validate`` may answer with.
            train_task, validate_task, submit_model_task: names of the tasks.

        Raises:
            TypeError: with the offending value.
        """
        super().__init__()
        if not isinstance(withheld_buffers, bool):
            raise TypeError(f"withheld_buffers must be true or false, got {withheld_buffers!r}")
        for name, names in (("sites", sites), ("metrics", metrics)):
            if isinstance(names, str) or not all(isinstance(item, str) for item in names or ()):
                raise TypeError(f"{name} must be a list of names, got {names!r}")
        self.experiment_id = experiment_id
        self.sites = None if sites is None else list(sites)
        self.withheld_buffers = withheld_buffers
        self.metrics = list(metrics)
        self.train_task = train_task
        self.validate_task = validate_task
        self.submit_model_task = submit_model_task
        self._model: dict[str, TensorForm] | None = None

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Return a copy of the checked message, or an error reply; never raises."""
        if not self._leaves_here(fl_ctx):
            return shareable
        site: Site | None = None
        try:
            site = open_site(fl_ctx)
            passed = self._check(site, shareable, fl_ctx)
            note(site.job_folder / GUARD, {"verdict": "passed", **passed.entry})
            return passed.message
        except Blocked as refusal:
            reason = str(refusal)
        except Exception as error:
            reason = f"the guard failed with {type(error).__name__}"
            if site is not None:
                record_private_error(site)
        self._tell(site, fl_ctx, reason)
        return make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR)

    def _leaves_here(self, fl_ctx: FLContext) -> bool:
        """Whether this is a result on its way out of a guarded site."""
        if comes_in(self, fl_ctx):
            return False
        return self.sites is None or fl_ctx.get_identity_name() in self.sites

    def _tell(self, site: Site | None, fl_ctx: FLContext, reason: str) -> None:
        task = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        self.log_warning(fl_ctx, f"the result of '{task}' was blocked: {reason}")
        if site is not None:
            # What is blocked stays blocked, also where the disk is full.
            with contextlib.suppress(OSError):
                entry = {"verdict": "blocked", "task": str(task), "reason": reason}
                note(site.job_folder / GUARD, entry)

    def _check(self, site: Site, message: Shareable, fl_ctx: FLContext) -> _Passed:
        # The context is NVFlare's own; the message may call itself what it likes.
        task = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        if (error := error_reply(message)) is not None:
            return _Passed(error, {"task": str(task), "error": error.get_return_code()})
        if task in (self.train_task, self.submit_model_task):
            return self._check_state(task, site, message, fl_ctx)
        if task == CANARY_TASK:
            return self._check_state(task, canary_twin(site), message, fl_ctx)
        if task == self.validate_task:
            metrics = checked_metrics(read_result(message, DataKind.METRICS).data, self.metrics)
            return _Passed(DXO(DataKind.METRICS, metrics).to_shareable(), {"task": task} | metrics)
        if task == SCORE_TASK:
            reply = checked_score_reply(message)
            return _Passed(reply.to_shareable(), {"task": task, "status": reply.status})
        raise Blocked("this task has no rule")

    def _check_state(self, task: str, site: Site, message: Shareable, fl_ctx: FLContext) -> _Passed:
        is_update, is_canary = task != self.submit_model_task, task == CANARY_TASK
        kind = DataKind.WEIGHT_DIFF if is_update else DataKind.WEIGHTS
        listed = [MetaKey.NUM_STEPS_CURRENT_ROUND, RECEIPT_META, MODE_META, PERTURBED_META]
        listed += [CANARY_IMAGES_META] if is_canary else []
        dxo = read_result(message, kind, meta=listed)
        receipt = self._receipt(site, dxo, fl_ctx)
        state = checked_state(dxo.data, self._expected(fl_ctx))
        if not tensor_digests(state).items() <= receipt.tensors.items():
            raise Blocked("the tensors were changed after their receipt was written")
        record = self._check_claims(site, receipt, fl_ctx, is_update=is_update)
        told: dict[str, Any] = {MODE_META: receipt.mode}
        if not site.certified.required:
            told[PERTURBED_META] = receipt.perturbed_samples
        if is_update:
            told[MetaKey.NUM_STEPS_CURRENT_ROUND] = receipt.steps
        if is_canary:
            told[CANARY_IMAGES_META] = len(record.images or ())
        for name, value in dxo.meta.items():
            if name != RECEIPT_META and (type(value), value) != (type(told[name]), told[name]):
                raise Blocked(f"{name} is not what the receipt says")
        if RECEIPT_META in dxo.meta:
            # A guard of the job that follows one of the site needs it again.
            fl_ctx.set_prop(_RECEIPT, dxo.meta[RECEIPT_META], private=True, sticky=False)
        names = ("task", "round", "mode", "version", "perturbed_samples", "steps")
        entry = {name: getattr(receipt, name) for name in names}
        return _Passed(DXO(kind, state, told).to_shareable(), entry)

    def _receipt(self, site: Site, dxo: DXO, fl_ctx: FLContext) -> Receipt:
        text = dxo.meta.get(RECEIPT_META, fl_ctx.get_prop(_RECEIPT))
        if text is None:
            raise Blocked("it has no receipt")
        try:
            return Receipt.verify(text, load_secret(site.private))
        except ReceiptError as error:
            raise Blocked(str(error)) from None

    def _check_claims(
        self, site: Site, receipt: Receipt, fl_ctx: FLContext, *, is_update: bool
    ) -> RoundRecord:
        """Compare the claims with what the guard knows; return the record of the round."""
        for name, value in identify_task(fl_ctx).items():
            if getattr(receipt, name) != value:
                raise Blocked(f"the receipt is of another {name}")
        if is_update:
            assignment = assignment_of(fl_ctx)
            if assignment is None or assignment.round != receipt.round:
                raise Blocked("the receipt is of another round")
            if state_digest(assignment.received) != receipt.model:
                raise Blocked("the receipt is of another global state")
        record = recall_round(site.job_folder, receipt.round)
        if record is None or record.steps != receipt.steps:
            raise Blocked("this site has no record of such a training")
        if site.certified.required and receipt.mode not in CERTIFIED_MODES:
            raise Blocked("it was trained under no certificate")
        if site.certified.required and receipt.mode == DP_SGD:
            return record
        if receipt.raw_samples != 0 or receipt.mode == UNDEFENDED:
            raise Blocked(f"it was trained on {receipt.raw_samples} raw samples")
        if receipt.perturbed_samples < 1:
            raise Blocked("it was trained on no perturbed samples")
        return record

    def _expected(self, fl_ctx: FLContext) -> dict[str, TensorForm]:
        if self._model is None:
            model = experiment_of(fl_ctx, self.experiment_id).build_model()
            self._model = {
                name: TensorForm(
                    shape=tuple(value.shape),
                    dtype=value.numpy().dtype,
                    may_lack=self.withheld_buffers and is_batchnorm_buffer(name),
                )
                for name, value in model.state_dict().items()
            }
        return self._model
