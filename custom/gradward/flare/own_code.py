"""Code that a job names by its path, held against the party's list of allowed classes.

NVFlare looks at the ``path`` of every component. A network's factory is named by an argument, which
it does not look at: without this, ``"os:system"`` would be one at a party that forbids own code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidationKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer


class JobError(ValueError):
    """The job's configuration does not fit together, or not to this party."""


def require_allowed(path: str, fl_ctx: FLContext) -> None:
    """Make sure that this party lets the job use ``path``.

    A job that brings code of its own, which takes the right to do so, may; any other job where
    ``class_allow_list`` in the party's ``local/resources.json`` names it.

    Args:
        path: ``package.module.name``.
        fl_ctx: of the job.

    Raises:
        JobError: it does not.
    """
    workspace = fl_ctx.get_engine().get_workspace()
    try:
        meta = Path(workspace.get_job_meta_path(fl_ctx.get_job_id())).read_text(encoding="utf-8")
        brings_code = json.loads(meta).get(AppValidationKey.BYOC) is True
    except (OSError, ValueError, AttributeError):
        brings_code = False
    if brings_code:
        return
    try:
        ComponentPathAuthorizer().authorize_component_config({"path": path}, workspace=workspace)
    except (UnsafeComponentError, OSError, ValueError):
        raise JobError(
            f"{path!r} is not allowed here: the job brings no code of its own, and "
            "'class_allow_list' in this party's local/resources.json does not name it; add it there"
        ) from None


def require_allowed_attacks(attacks: Sequence[Mapping[str, Any]], fl_ctx: FLContext) -> None:
    """Make sure of the attacks that a job names by their path.

    Raises:
        JobError: one of them is not allowed here.
    """
    for attack in attacks:
        if "path" in attack:
            require_allowed(attack["path"], fl_ctx)
