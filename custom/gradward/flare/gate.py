"""A site attacks its own update before it lets it go."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nvflare.apis.dxo import DataKind
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants

from gradward.flare.analytics import stream_scalars
from gradward.flare.experiment import experiment_of, find_component
from gradward.flare.journal import note
from gradward.flare.outgoing import comes_in
from gradward.flare.own_code import require_allowed_attacks
from gradward.flare.perturber import Perturbation
from gradward.flare.receipt import assignment_of
from gradward.flare.results import forget_local_model
from gradward.flare.self_attack import NotJudged, SelfAttack
from gradward.flare.site import Site, open_site, record_private_error
from gradward.flare.states import read_dxo
from gradward.report.site_folder import GATE

LIMITED = ("recovered", "rdlv", "reid")
ACTIONS = ("warn", "strengthen", "withhold")
ON_FAILURE = ("pass", "withhold")
DIGITS = 3


@dataclass(frozen=True)
class _Verdict:
    """Whether one update may leave; why not, or why although; and what was measured."""

    passes: bool
    reason: str
    round: int | None = None
    seconds: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """Return it as a line of the journal."""
        return {
            "verdict": "passed" if self.passes else "withheld",
            "reason": self.reason,
            "round": self.round,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            **{
                name: None if math.isnan(value) else round(value, DIGITS)
                for name, value in self.values.items()
            },
        }


class LeakageGate(Filter):
    """Mounts the audit's portfolio on the site's own update and acts where it leaks too much.

    The gate is the site's, not the server's: it knows how many images there were and needs no
    question to the scoring door. Configure it last, after noise and pruning, so that it judges what
    would really leave. Scores and verdicts go to the site's private ``gate.log``; they depend on
    the data, as does whether an update comes at all, and neither is covered by a certificate: at a
    site whose policy demands one the gate stands open.

    ``withhold`` answers with an error instead of the update and forgets the local model, so that
    ``submit_model`` does not give it out later. ``strengthen`` does that and degrades
    the perturber's stored views for the rounds to come, as far as the settings allow. ``warn`` only
    logs.
    """

    def __init__(
        self,
        attacks: Sequence[Mapping[str, Any]],
        budget: Mapping[str, Any],
        limits: Mapping[str, float],
        action: str = "withhold",
        on_failure: str = "withhold",
        every_n_rounds: int = 1,
        strengthen_by: float = 0.7,
        sites: Sequence[str] | None = None,
        experiment_id: str = "experiment",
        perturbation_id: str = "perturbation",
        analytics_sender_id: str = "analytics_sender",
        train_task: str = AppConstants.TASK_TRAIN,
    ) -> None:
        """Check every argument.

        Args:
            attacks: fields of :class:`gradward.attacks.AttackSpec`, one entry an attack.
            budget: fields of :class:`gradward.attacks.budget.Budget`, for each attack.
            limits: greatest value allowed, best of attacks and mean over the round's images, of
                any of ``recovered``, ``rdlv`` and ``reid``.
            action: beyond a limit: ``"warn"``, ``"strengthen"`` or ``"withhold"``.
            on_failure: of an update that no attack could judge: ``"pass"`` or ``"withhold"``.
            every_n_rounds: judge rounds whose number this divides.
            strengthen_by: factor in (0, 1) of :meth:`SitePerturber.strengthen`.
            sites: names of the sites with a gate; None for all.
            experiment_id, perturbation_id, analytics_sender_id: ids of the job's components.
            train_task: name of the task.

        Raises:
            TypeError, ValueError: with the offending value.
        """
        super().__init__()
        self._attack = SelfAttack(attacks, budget)
        if not limits or not set(limits) <= set(LIMITED):
            raise ValueError(f"limits must name some of {LIMITED}, got {limits!r}")
        for name, limit in limits.items():
            if isinstance(limit, bool) or not isinstance(limit, int | float) or limit < 0:
                raise ValueError(f"the limit of {name} must be a number from 0 on, got {limit!r}")
        for name, value, known in (
            ("action", action, ACTIONS),
            ("on_failure", on_failure, ON_FAILURE),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        if (
            isinstance(every_n_rounds, bool)
            or not isinstance(every_n_rounds, int)
            or every_n_rounds < 1
        ):
            raise ValueError(
                f"every_n_rounds must be an integer of at least 1, got {every_n_rounds!r}"
            )
        if not isinstance(strengthen_by, float) or not 0 < strengthen_by < 1:
            raise ValueError(f"strengthen_by must lie in (0, 1), got {strengthen_by!r}")
        self.attacks = [dict(attack) for attack in attacks]
        self.budget = dict(budget)
        self.limits = dict(limits)
        self.action = action
        self.on_failure = on_failure
        self.every_n_rounds = every_n_rounds
        self.strengthen_by = strengthen_by
        self.sites = None if sites is None else list(sites)
        self.experiment_id = experiment_id
        self.perturbation_id = perturbation_id
        self.analytics_sender_id = analytics_sender_id
        self.train_task = train_task

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Return the message as it is, or an error reply; never raises."""
        site: Site | None = None
        try:
            if not self._concerns(shareable, fl_ctx):
                return shareable
            site = open_site(fl_ctx)
            if site.certified.required:
                # A verdict depends on the data, and so does whether an update comes at all.
                return shareable
            site.apply_threads()
            verdict = self._judge(site, shareable, fl_ctx)
        except NotJudged as error:
            verdict = self._unjudged(str(error))
        except Exception as error:
            if site is not None:
                record_private_error(site)
            verdict = self._unjudged(f"the gate failed with {type(error).__name__}")
        if verdict.reason:
            fate = "leaves all the same" if verdict.passes else "is withheld"
            self.log_warning(fl_ctx, f"the update {fate}: {verdict.reason}")
        if site is not None:
            if not verdict.passes:
                self._forget(site, fl_ctx)
            with contextlib.suppress(OSError):
                note(site.job_folder / GATE, verdict.entry())
            self._stream(site, verdict, fl_ctx)
        return shareable if verdict.passes else make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR)

    def _concerns(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Whether this is an update on its way out, in a round with a gate."""
        if comes_in(self, fl_ctx):
            return False
        if self.sites is not None and fl_ctx.get_identity_name() not in self.sites:
            return False
        if fl_ctx.get_prop(FLContextKey.TASK_NAME) != self.train_task:
            return False
        if shareable.get_return_code() != ReturnCode.OK:
            return False
        assignment = assignment_of(fl_ctx)
        # Without one the round is unknown, and the judgement says so.
        return assignment is None or assignment.round % self.every_n_rounds == 0

    def _judge(self, site: Site, shareable: Shareable, fl_ctx: FLContext) -> _Verdict:
        assignment = assignment_of(fl_ctx)
        if assignment is None:
            raise NotJudged("the trainer left no note of what it was sent")
        number = assignment.round
        update = read_dxo(shareable, DataKind.WEIGHT_DIFF).data
        experiment = experiment_of(fl_ctx, self.experiment_id)
        require_allowed_attacks(self.attacks, fl_ctx)
        started = time.monotonic()
        scores = self._attack.on(site, experiment, number, assignment.received, update)
        values = {name: getattr(scores, name) for name in self.limits}
        undefined = [name for name, value in values.items() if math.isnan(value)]
        beyond = [name for name, value in values.items() if value > self.limits[name]]
        verdict = _Verdict(True, "", number, time.monotonic() - started, values)
        if beyond:
            reason = f"{' and '.join(beyond)} beyond the limit in round {number}"
            if self.action == "strengthen":
                reason += f"; {self._strengthen(site, fl_ctx)}"
            return replace(verdict, passes=self.action == "warn", reason=reason)
        if undefined:
            reason = f"{' and '.join(undefined)} is undefined for these images"
            return replace(verdict, passes=self.on_failure == "pass", reason=reason)
        return verdict

    def _forget(self, site: Site, fl_ctx: FLContext) -> None:
        """Withhold the local model as well, which says what the update says."""
        try:
            forget_local_model(site)
        except OSError as error:
            record_private_error(site)
            self.log_error(
                fl_ctx,
                f"the local model of the withheld update could not be removed "
                f"({type(error).__name__}): stop the job before it is asked for",
            )

    def _stream(self, site: Site, verdict: _Verdict, fl_ctx: FLContext) -> None:
        """Show the values where the site allows it; a failure changes no verdict."""
        if not site.gate.stream or verdict.round is None:
            return
        rounded = {name: round(value, DIGITS) for name, value in verdict.values.items()}
        try:
            stream_scalars(fl_ctx, self.analytics_sender_id, "defense/gate", rounded, verdict.round)
        except Exception as error:
            record_private_error(site)
            self.log_warning(fl_ctx, f"the gate's values stay here: {type(error).__name__}")

    def _strengthen(self, site: Site, fl_ctx: FLContext) -> str:
        try:
            perturbation = find_component(fl_ctx, self.perturbation_id, Perturbation)
            perturbation.strengthen(site, self.strengthen_by)
        except Exception as error:
            # The update is withheld whether or not the next ones can be made safer.
            record_private_error(site)
            return f"the perturbation could not be strengthened ({type(error).__name__})"
        return "the perturbation was strengthened"

    def _unjudged(self, reason: str) -> _Verdict:
        return _Verdict(self.on_failure == "pass", f"it was not judged: {reason}")
