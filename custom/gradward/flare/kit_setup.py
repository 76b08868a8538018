"""What a party adds to its startup kit after provisioning, which NVFlare leaves to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.workspace import Workspace

from gradward.flare.allow_list import NEEDED_CLASSES

RESOURCES, SETTINGS, PRIVACY = "resources.json", "gradward.json", "privacy.json"
STORAGE = "storage"


class KitError(ValueError):
    """The kit, or what shall be put into it, cannot be used; says what is wrong with it."""


def set_up_kit(
    kit: Path,
    *,
    settings: Path | None = None,
    policy: Path | None = None,
    gpus: int = 0,
    gpu_memory: int = 0,
) -> list[str]:
    """Write a party's ``local`` folder: allow list, GPUs or storage, settings and policy.

    Settings already there stay unless they are named anew. NVFlare reads the result at the next
    start of the party.

    Args:
        kit: of a site or the server, the folder that holds ``startup`` and ``local``.
        settings: a ``gradward.json``: where the data are, device, limits.
        policy: a folder of ``poc/site-policies``; its settings go over the others.
        gpus: GPUs that a site offers to jobs; 0 for none.
        gpu_memory: GiB of each of them.

    Returns:
        A line for each thing that was written.

    Raises:
        KitError: with the file that is missing or damaged.
    """
    local = kit / "local"
    if not local.is_dir() or not (kit / "startup").is_dir():
        raise KitError(
            f"{kit} is no startup kit of a site or a server; give the folder with its 'startup'"
        )
    is_site = (kit / "startup" / "fed_client.json").is_file()
    if not is_site and (policy is not None or gpus):
        raise KitError(f"{kit} is no site's kit: policies and GPUs are a site's")
    done = [_write_resources(local, is_site, gpus, gpu_memory)]
    if settings is not None or policy is not None:
        done.append(_write_settings(local, settings, policy))
    if policy is not None:
        shutil.copyfile(_existing(policy / PRIVACY), local / PRIVACY)
        done.append(f"{PRIVACY}: {policy.name}")
    return done


def _write_resources(local: Path, is_site: bool, gpus: int, gpu_memory: int) -> str:
    file = local / RESOURCES
    # NVFlare's own choice between the file and its default.
    source = Path(Workspace(str(local.parent)).get_resources_file_path() or file)
    resources = _read(source)
    listed = resources.setdefault("class_allow_list", [])
    new = [path for path in NEEDED_CLASSES if path not in listed]
    listed.extend(new)
    said = f"{RESOURCES}: {len(new)} classes of GradWard allowed"
    if is_site:
        # A job could have the site's log streamed, past all filters.
        resources["allow_log_streaming"] = False
        _arguments(resources, "resource_manager", source).update(
            {"num_of_gpus": gpus, "mem_per_gpu_in_GiB": gpu_memory}
        )
        said += f", {gpus} GPUs offered, log streaming off"
    else:
        said += f", jobs kept in {_move_storage(local.parent, resources, source)}"
    _write(file, resources)
    return said


def _move_storage(kit: Path, resources: dict[str, Any], source: Path) -> Path:
    """Keep jobs and their results in the kit: NVFlare's default is open to every user in /tmp."""
    folder = kit / STORAGE
    folder.mkdir(mode=0o700, exist_ok=True)
    jobs = _arguments(resources, "job_manager", source)
    snapshots = resources.get("snapshot_persistor", {}).get("args", {}).get("storage", {})
    for place, name, part in (
        (jobs, "uri_root", "jobs"),
        (snapshots.get("args", {}), "root_dir", "snapshots"),
    ):
        # Whoever has chosen another place keeps it.
        if str(place.get(name, "")).startswith("/tmp/nvflare/"):
            place[name] = str((folder / part).resolve())
    return Path(jobs["uri_root"])


def _write_settings(local: Path, settings: Path | None, policy: Path | None) -> str:
    file = local / SETTINGS
    merged = _read(file) if file.is_file() else {}
    for source in (settings, None if policy is None else policy / SETTINGS):
        if source is not None:
            merged |= _read(source)
    _write(file, merged)
    return f"{SETTINGS}: {', '.join(sorted(merged)) or 'empty'}"


def component_arguments(resources: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return the arguments of a component in a resources file, or None if it is not there.

    What is changed in them is changed in ``resources``.
    """
    for component in resources.get("components", ()):
        if isinstance(component, dict) and component.get("id") == name:
            arguments: dict[str, Any] = component.setdefault("args", {})
            return arguments
    return None


def _arguments(resources: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    found = component_arguments(resources, name)
    if found is None:
        raise KitError(f"{file} has no component {name!r}; restore it from resources.json.default")
    return found


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise KitError(f"{file} is not there; restore it, or name another folder")
    return file


def _read(file: Path) -> dict[str, Any]:
    text = _existing(file).read_text(encoding="utf-8")
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise KitError(f"{file} is no JSON object: {error}; correct it") from None


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
