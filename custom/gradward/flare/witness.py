"""The site's own note of the rounds it trained in, where its trainer is somebody else's."""

from __future__ import annotations

from nvflare.apis.dxo import DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from gradward.flare.protocol import MOST_ROUNDS, SCORE_TASK
from gradward.flare.rounds import RoundRecord, recall_round, remember_round
from gradward.flare.site import SiteSettingsError, open_site
from gradward.flare.states import MessageError, read_dxo

_ROUND = "gradward_witnessed_round"


class TrainingWitness(FLComponent):
    """Notes each round in which an update passed the site's filters on its way out.

    The scorer answers for no other rounds: that a site trained is what this site saw, not what the
    server says. Which images were used it cannot see, and notes that. What a trainer of ours noted
    before is left alone.
    """

    def __init__(self, train_task: str = AppConstants.TASK_TRAIN) -> None:
        """Check the argument.

        Args:
            train_task: name of the task whose result is an update.

        Raises:
            ValueError: with the offending value.
        """
        super().__init__()
        if not isinstance(train_task, str) or train_task in ("", SCORE_TASK):
            raise ValueError(f"train_task must be the name of a training task, got {train_task!r}")
        self.train_task = train_task

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Follow the training task from its arrival to what is left of it after the filters."""
        if event_type == EventType.BEFORE_TASK_EXECUTION:
            task = fl_ctx.get_prop(FLContextKey.TASK_DATA)
            if isinstance(task, Shareable):
                number = task.get_header(AppConstants.CURRENT_ROUND)
                fl_ctx.set_prop(_ROUND, number, private=True, sticky=False)
        elif (
            event_type == EventType.AFTER_TASK_RESULT_FILTER
            and fl_ctx.get_prop(FLContextKey.TASK_NAME) == self.train_task
        ):
            self._note(fl_ctx)

    def _note(self, fl_ctx: FLContext) -> None:
        result, number = fl_ctx.get_prop(FLContextKey.TASK_RESULT), fl_ctx.get_prop(_ROUND)
        if not isinstance(result, Shareable) or result.get_return_code() != ReturnCode.OK:
            return
        try:
            read_dxo(result, DataKind.WEIGHTS, DataKind.WEIGHT_DIFF)
            if type(number) is not int or not 0 <= number < MOST_ROUNDS:
                raise MessageError("the training task names no round")
            folder = open_site(fl_ctx).job_folder
            if recall_round(folder, number) is None:
                remember_round(folder, RoundRecord(number, images=None, steps=None))
        except (MessageError, SiteSettingsError, OSError) as error:
            # Without a note the scorer refuses; the training goes on.
            reason = str(error) if not isinstance(error, OSError) else type(error).__name__
            self.log_warning(fl_ctx, f"this round will not be scored: {reason}")
