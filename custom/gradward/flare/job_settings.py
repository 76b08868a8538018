"""Changes arguments of a job's components by name, for sweeps: the job folder stays as it is."""

from __future__ import annotations

import contextlib
import inspect
import json
import pydoc
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gradward.flare.job_export import tell_run_log, write_config


class SettingError(ValueError):
    """A change that cannot be read, or that fits no component of the job."""


@contextlib.contextmanager
def changed_job(job: Path, changes: Sequence[str]) -> Iterator[Path]:
    """Lend a copy of a job folder with some arguments changed, on the server and the sites alike.

    Args:
        job: folder, which stays as it is.
        changes: ``COMPONENT.ARGUMENT=VALUE`` each, e.g. ``UpdateNoise.fraction=0.1`` or
            ``experiment.training.batch_size=4``. A component is named by its id or its class, and
            all of that name are changed; a value is JSON, or else text.

    Yields:
        The copy, of the same name; the folder itself without changes.

    Raises:
        SettingError: a change does not fit; says what is there.
    """
    if not changes:
        yield job
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / job.name
        shutil.copytree(job, copy)
        files = {
            file: json.loads(file.read_text(encoding="utf-8"))
            for file in sorted(copy.glob("*/config/config_fed_*.json"))
        }
        components = [item for config in files.values() for item in _components(config)]
        for change in changes:
            _apply(components, change)
        for file, config in files.items():
            write_config(file, config)
        tell_run_log(copy)
        yield copy


def _apply(components: Sequence[dict[str, Any]], change: str) -> None:
    path, equals, text = change.partition("=")
    name, *keys = path.strip().split(".")
    if not equals or not keys or not all(keys):
        raise SettingError(f"a setting must read COMPONENT.ARGUMENT=VALUE, got {change!r}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text.strip()
    named = [item for item in components if name in _names(item)]
    if not named:
        known = sorted({known for item in components for known in _names(item)})
        raise SettingError(f"the job has no component {name!r}; it has {', '.join(known)}")
    for item in named:
        _require_argument(item, keys[0])
        place = item.setdefault("args", {})
        for key in keys[:-1]:
            if place.get(key) is None:
                place[key] = {}
            place = place[key]
            if not isinstance(place, dict):
                raise SettingError(f"{change!r} goes below {key!r}, which is {place!r}")
        place[keys[-1]] = value


def _require_argument(component: dict[str, Any], argument: str) -> None:
    """Refuse an argument that the class does not take: NVFlare would say so in its log alone."""
    kind = pydoc.locate(component["path"])
    if kind is None or argument in component.get("args", {}):
        return
    parameters = inspect.signature(kind).parameters  # type: ignore[arg-type]
    if argument not in parameters:
        raise SettingError(
            f"{component['path']} has no argument {argument!r}; it has {', '.join(parameters)}"
        )


def _components(config: Any) -> Iterator[dict[str, Any]]:
    """Find everything that NVFlare builds from a class's path, however deep."""
    if isinstance(config, dict):
        if isinstance(config.get("path"), str):
            yield config
        for value in config.values():
            yield from _components(value)
    elif isinstance(config, list):
        for value in config:
            yield from _components(value)


def _names(component: dict[str, Any]) -> set[str]:
    names = {component["path"].rsplit(".", 1)[-1]}
    return names | {component["id"]} if isinstance(component.get("id"), str) else names
