"""What runs were asked to do: flat settings, what differs in them, and the one that was swept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gradward.report.run_folder import DP_SGD, Configuration, Run

# Dotted path to JSON value; a path that is not there counts as None.
Settings = dict[str, Any]

# The seed tells repetitions of one setting apart; what depends on the site is told site by site.
_NOT_SHARED = ("seed", "training", "per_site")
_DEFENCES_IN_TRAINING = ("input_noise", "random_erasing", "bido", "dp_sgd")


def sites_of(run: Run) -> list[str]:
    """Names of a run's sites, from its configuration or else from its records."""
    if run.configuration is not None:
        return list(run.configuration.sites)
    return sorted({record.site for record in run.records})


def seed_of(run: Run) -> int | None:
    """The seed of a run, from its configuration or else from its records."""
    if run.configuration is not None and "seed" in run.configuration.experiment:
        return int(run.configuration.experiment["seed"])
    return run.records[0].seed if run.records else None


def shared_settings(configuration: Configuration) -> Settings:
    """What a job asks of everybody: model, data by name, audit, rounds and sites."""
    experiment = {
        name: value for name, value in configuration.experiment.items() if name not in _NOT_SHARED
    }
    audit = _flatten(configuration.audit, "audit.")
    whole = {"rounds": configuration.rounds, "sites": list(configuration.sites)}
    return {**_flatten(experiment), **whole, **audit}


def site_settings(configuration: Configuration, site: str) -> Settings:
    """What a job asks of one site: its training and the defences that apply to it."""
    found = _flatten(_training_at(configuration, site), "training.")
    for name, settings in _defences_at(configuration, site).items():
        # The name by itself tells a defence without settings from no defence.
        found |= {name: "on", **_flatten(settings, f"{name}.")}
    return found


def describe_defence(configuration: Configuration, site: str) -> str:
    """The defences of a site in a few words; ``none`` where the job asks for none."""
    training = _training_at(configuration, site)
    inside = {name: training[name] for name in _DEFENCES_IN_TRAINING if training.get(name)}
    words = [_in_words(name, _flatten({"": value})) for name, value in inside.items()]
    for name, settings in _defences_at(configuration, site).items():
        words.append(_in_words(name, _flatten(settings)))
    return ", ".join(words) or "none"


def differing(settings: Sequence[Settings]) -> list[str]:
    """Paths whose value is not the same in all, in alphabetical order."""
    paths = sorted({path for item in settings for path in item})
    return [path for path in paths if len({_text(item.get(path)) for item in settings}) > 1]


def swept_setting(groups: Sequence[Sequence[Settings]]) -> str | None:
    """Find the one numeric setting in which runs differ; None where there is none or more.

    A run without the whole defence to which the setting belongs is the sweep's baseline and does
    not spoil it.

    Args:
        groups: for each group of sites, its settings in every run. Groups of which nothing differs
            have no say; the others must agree.
    """
    found = {_swept(group) for group in groups if differing(group)}
    return found.pop() if len(found) == 1 else None


def _swept(settings: Sequence[Settings]) -> str | None:
    paths = differing(settings)
    numeric = [path for path in paths if _is_swept(path, settings)]
    if len(numeric) != 1:
        return None
    (axis,) = numeric
    present = [item for item in settings if item.get(axis) is not None]
    absent = [item for item in settings if item.get(axis) is None]
    belongs = axis.split(".")[0]
    for path in paths:
        of_the_defence = path.split(".")[0] == belongs != "training"
        if path != axis and not (
            of_the_defence
            and not differing([{path: item.get(path)} for item in present])
            and all(item.get(path) is None for item in absent)
        ):
            return None
    return axis


def _is_swept(path: str, settings: Sequence[Settings]) -> bool:
    values = [item[path] for item in settings if item.get(path) is not None]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return numbers and len(set(values)) > 1


def _training_at(configuration: Configuration, site: str) -> dict[str, Any]:
    experiment = configuration.experiment
    training = dict(experiment.get("training") or {})
    training |= (experiment.get("per_site") or {}).get(site) or {}
    if any(defence.kind == DP_SGD for defence in configuration.defences):
        # It is one of the trainer's settings, and told once, among the defences.
        training.pop("dp_sgd", None)
    return training


def _defences_at(configuration: Configuration, site: str) -> dict[str, Mapping[str, Any]]:
    """Settings of the defences that apply to a site, by name; a second of one name is numbered."""
    found: dict[str, Mapping[str, Any]] = {}
    for defence in configuration.defences:
        if defence.sites is not None and site not in defence.sites:
            continue
        name, number = defence.name, 2
        while name in found:
            name, number = f"{defence.name}#{number}", number + 1
        found[name] = defence.settings
    return found


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Settings:
    flat: Settings = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _in_words(name: str, settings: Settings) -> str:
    values = [f"{path.strip('.')}={value}".lstrip("=") for path, value in settings.items()]
    return " ".join([name, *values])
