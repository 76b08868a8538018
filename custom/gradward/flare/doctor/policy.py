"""What the doctor sees of a party's policy: what jobs may do there, and whether it is in force."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FilterKey
from nvflare.private.fed.app.fl_conf import create_privacy_manager

from gradward.flare.allow_list import missing_classes
from gradward.flare.close_scoring import CloseScoring
from gradward.flare.doctor.findings import ATTENTION, OK, PROBLEM, Finding, Kit
from gradward.flare.guard import PerturbationGuard
from gradward.flare.private_folder import PRIVATE_FOLDER

# What NVFlare reads when a party starts, and not again.
_READ_AT_START = ("privacy.json", "resources.json", "authorization.json")


def policies(kit: Kit) -> list[Finding]:
    """What the party's own ``gradward.json`` says."""
    found = Finding(OK, "gradward.json", f"read for the {kit.role} {kit.name!r}")
    if kit.role == "server":
        return [found]
    scoring = f"at most {kit.policies.scoring.max_answers} answers a job"
    kind = "demanded of every job" if kit.policies.certified.required else "none is stated"
    return [
        found,
        Finding(OK, "live scoring", scoring if kit.policies.scoring.enabled else "closed"),
        Finding(OK, "certificate", kind),
    ]


def allow_list(kit: Kit) -> list[Finding]:
    """Whether NVFlare builds the classes that our jobs name, where a job brings no code."""
    missing = missing_classes(kit.workspace)
    if missing:
        lines = ",\n".join(f'  "{path}"' for path in missing)
        remedy = (
            'add to "class_allow_list" in local/resources.json (make it a copy of '
            f"resources.json.default if it is not there), then restart:\n{lines}"
        )
        text = f"{len(missing)} classes are refused in jobs that bring no code of their own"
        return [Finding(PROBLEM, "allow list", text, remedy)]
    lax = kit.resources.get("class_list_enforcement_mode") == "warn"
    if lax or "*" in kit.resources.get("class_allow_list", []):
        remedy = "name the classes instead of '*', and enforce the list"
        return [Finding(ATTENTION, "allow list", "any class may be built here", remedy)]
    return [Finding(OK, "allow list", "has every class that our jobs name")]


def own_code(kit: Kit) -> list[Finding]:
    """Who may submit jobs with code of their own, which no filter holds back."""
    permissions = _authorization(kit).get("permissions", {})
    allowed = [
        role
        for role, rights in permissions.items()
        if rights == "any" or (isinstance(rights, dict) and rights.get("byoc", "none") != "none")
    ]
    if not allowed or kit.role == "server":
        return []
    text = f"jobs of {', '.join(allowed)} may bring code, which can read what the site can"
    remedy = 'set "byoc" to "none" in local/authorization.json where a policy shall hold'
    return [Finding(ATTENTION, "code of jobs", text, remedy)]


def privacy(kit: Kit) -> list[Finding]:
    """Whether ``privacy.json`` can be used, what it forces, and whether a job can get round it."""
    if kit.role == "server":
        return []
    file = kit.folder / "local" / "privacy.json"
    if not file.is_file():
        remedy = "take one of poc/site-policies"
        return [Finding(ATTENTION, "privacy.json", "there is none: every job decides", remedy)]
    try:
        manager = create_privacy_manager(kit.workspace, names_only=False)
    except Exception as error:
        text = f"NVFlare cannot build it ({type(error).__name__}): {error}"
        return [Finding(PROBLEM, "privacy.json", text, "correct local/privacy.json")]
    return list(_scopes(kit, manager))


def _scopes(kit: Kit, manager: Any) -> Iterator[Finding]:
    names, wanted = sorted(manager.name_to_scopes), kit.settings.get("scope")
    default = manager.default_scope
    if default is None:
        text = "it has no default scope: a job that names none is not deployed"
        yield Finding(ATTENTION, "privacy.json", text, 'add "default_scope"')
    else:
        kinds = [type(f).__name__ for f in _filters(default)]
        yield Finding(OK, "privacy.json", f"scope {default.name!r}: {', '.join(kinds) or 'open'}")
    if len(names) > 1:
        text = f"a job may choose among {', '.join(names)}"
        yield Finding(ATTENTION, "scope", text, "define the one scope that shall hold")
    if wanted is None:
        text = "a job can run without any filter between a change of policy and the restart"
        remedy = f'add "scope": "{names[0] if names else ""}" to local/gradward.json'
        yield Finding(ATTENTION, "scope", text, remedy)
    elif wanted not in names:
        text = f"gradward.json demands the scope {wanted!r}, which privacy.json lacks"
        yield Finding(PROBLEM, "scope", f"{text}: no job can run", "name the same in both")
    if kit.policies.certified.required:
        scope = manager.name_to_scopes.get(wanted, default)
        held = {type(f) for f in _filters(scope)} if scope else set()
        if not {PerturbationGuard, CloseScoring} <= held:
            remedy = "take privacy.json of poc/site-policies/certified"
            text = (
                "a certificate is demanded, but the scope lacks PerturbationGuard or CloseScoring"
            )
            yield Finding(PROBLEM, "certificate", text, remedy)


def _filters(scope: Any) -> list[Any]:
    return [*scope.task_data_filters[FilterKey.IN], *scope.task_result_filters[FilterKey.OUT]]


def restart(kit: Kit) -> list[Finding]:
    """Whether a running party has read its policy as it is now."""
    started = _started(kit.folder / "pid.fl")
    if started is None:
        return [Finding(OK, "running", f"this {kit.role} is not running")]
    changed = [
        file.name
        for name in _READ_AT_START
        for file in (kit.folder / "local" / name, kit.folder / "local" / f"{name}.default")
        if file.is_file() and file.stat().st_mtime > started
    ]
    if changed:
        text = f"{', '.join(changed)} changed after this {kit.role} started, which has not read it"
        return [Finding(PROBLEM, "running", text, "restart it: startup/stop_fl.sh, then start.sh")]
    return [Finding(OK, "running", f"this {kit.role} runs, and has read its policy as it is")]


def _started(pid_file: Path) -> float | None:
    """Return when the process began that wrote ``pid_file``, seconds of the epoch, if it lives."""
    try:
        os.kill(int(pid_file.read_text(encoding="utf-8")), 0)
        return pid_file.stat().st_mtime
    except PermissionError:
        # It lives, and belongs to another user.
        return pid_file.stat().st_mtime
    except (OSError, ValueError):
        return None


def logs(kit: Kit) -> list[Finding]:
    """Whether NVFlare may stream the site's logs to the server."""
    if kit.role == "server":
        return []
    if kit.resources.get("allow_log_streaming", True) is False:
        return [Finding(OK, "logs", "stay here")]
    level = PROBLEM if kit.policies.certified.required else ATTENTION
    text = "error_log.txt is streamed to the server, any other log where a job asks for it"
    remedy = 'set "allow_log_streaming": false in local/resources.json, then restart'
    return [Finding(level, "logs", text, remedy)]


def private_folder(kit: Kit) -> list[Finding]:
    """Whether the private folder is closed to others."""
    override = os.environ.get("GRADWARD_PRIVATE")
    folder = Path(override) / kit.name if override else kit.folder / PRIVATE_FOLDER
    if not folder.is_dir():
        return [Finding(OK, "private folder", "will be made by the first job")]
    if folder.stat().st_mode & 0o077:
        remedy = f"chmod 700 {folder}"
        return [Finding(PROBLEM, "private folder", "other users can look into it", remedy)]
    return [Finding(OK, "private folder", "closed to other users")]


def _authorization(kit: Kit) -> dict[str, Any]:
    try:
        file = Path(kit.workspace.get_authorization_file_path())
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
