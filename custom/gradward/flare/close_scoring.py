"""The scoring door, closed from outside the job: by a filter in the site's own ``privacy.json``."""

from __future__ import annotations

from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FilterKey, FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

from gradward.flare.answer_log import keep_description
from gradward.flare.protocol import SCORE_TASK

_WITHHELD = "gradward_withheld"
# By these the server knows which task an answer is for; without them it sends the task for ever.
_COOKIES = (FLContextKey.TASK_ID, ReservedHeaderKey.WORKFLOW)
_MOST_LETTERS = 100


class CloseScoring(Filter):
    """Empties every scoring task before the job's executor sees it; all other tasks pass.

    Configured as ``task_data_filters`` in ``local/privacy.json``. No reconstruction then reaches
    the process's job code, whatever executor the job names for the task, and
    :class:`~gradward.flare.scorer.LeakageScorer` answers with a refusal that is on record.
    """

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Return an empty task in place of a scoring task."""
        # The context is NVFlare's own; the message may call itself what it likes.
        if fl_ctx.get_prop(FLContextKey.TASK_NAME) != SCORE_TASK:
            return shareable
        if fl_ctx.get_prop(FLContextKey.FILTER_DIRECTION) == FilterKey.OUT:
            # On a server that shares the policy file, as in the simulator, tasks go out.
            return shareable
        keep_description(shareable, fl_ctx)
        empty = Shareable()
        empty.set_header(_WITHHELD, True)
        for name in _COOKIES:
            cookie = shareable.get_cookie(name)
            if isinstance(cookie, str) and len(cookie) <= _MOST_LETTERS:
                empty.add_cookie(name, str(cookie))
        return empty


def is_withheld(shareable: Shareable) -> bool:
    """Whether :class:`CloseScoring` emptied this task."""
    return shareable.get_header(_WITHHELD) is True
