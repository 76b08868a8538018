"""The first screen of TensorBoard: what was run, and leakage against its control, site by site."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import FileWriter
from torch.utils.tensorboard.summary import custom_scalars, hparams, scalar, text

from gradward.report.run_folder import (
    DP_SGD,
    PERTURBATION,
    UPDATE_FILTER,
    Configuration,
    Defence,
)
from gradward.training_settings import TrainingSettings

# Runs of TensorBoard beside those of the sites; real and control differ by their run's colour.
SUMMARY, REAL, CONTROL = "summary", "overview/attack", "overview/control"
CARD = "configuration"
EXCESS, ACCURACY = "worst_recovered_minus_control", "accuracy"

_SHOWN = ("recovered", "reid")
_ACCURACY_TAG = "valid/accuracy"
_SCORE = re.compile(
    r"(leakage|canary/(?P<site>[^/]+))/(?P<attack>[^/]+)/(?P<control>control/)?(?P<metric>[^/]+)"
)
_TRAINING = ("optimizer", "lr", "batch_size", "epochs", "steps", "loss", "momentum", "weight_decay")


class RunOverview:
    """Writes what no single site streams, from what all of them stream.

    In the run ``summary``: a text card and the hyperparameters of the run's configuration, the
    layout of the CUSTOM SCALARS tab, and two figures by which runs are compared in HPARAMS. In
    ``overview/attack`` and ``overview/control``: ``overview/<metric>/<site>/<attack>``, the
    reconstruction of the site's update beside that of the wrong update.
    """

    def __init__(self, folder: Path, configuration: Configuration) -> None:
        """Write the card, the layout and the hyperparameters.

        Args:
            folder: of the event files, with a sub-folder a site.
            configuration: of the run.
        """
        self._summary = FileWriter(str(folder / SUMMARY))
        self._beside = {
            False: FileWriter(str(folder / REAL)),
            True: FileWriter(str(folder / CONTROL)),
        }
        self._recovered: dict[tuple[str, int], dict[bool, dict[str, float]]] = defaultdict(
            lambda: {False: {}, True: {}}
        )
        self._accuracy: dict[int, dict[str, float]] = defaultdict(dict)
        _, started, self._ended = hparams(hyperparameters(configuration), {})
        # The first thing that torch returns is a list of names; without it TensorBoard shows all
        # that any of the compared runs has.
        for written in (
            text(CARD, markdown_card(configuration)),
            custom_scalars(layout(configuration)),
            started,
        ):
            self._summary.add_summary(written)
        self._summary.flush()

    def note(self, site: str, tag: str, step: int, value: float) -> None:
        """Take one scalar that was streamed.

        Args:
            site: whose it is, or the server's name.
            tag, step, value: as streamed.
        """
        if tag == _ACCURACY_TAG:
            values = self._accuracy[step]
            values[site] = value
            _write(self._summary, ACCURACY, sum(values.values()) / len(values), step)
        score = _SCORE.fullmatch(tag)
        if score is None or score["metric"] not in _SHOWN:
            return
        attacked, is_control = score["site"] or site, score["control"] is not None
        shown = f"overview/{score['metric']}/{attacked}/{score['attack']}"
        _write(self._beside[is_control], shown, value, step)
        if score["metric"] == "recovered":
            self._recovered[attacked, step][is_control][score["attack"]] = value
            self._write_excess(step)

    def close(self) -> None:
        """Mark the run as ended."""
        self._summary.add_summary(self._ended)
        for writer in (self._summary, *self._beside.values()):
            writer.close()

    def _write_excess(self, step: int) -> None:
        """Write the worst of all sites and rounds so far, best of attacks on either side."""
        excess = [
            max(scores[False].values()) - max(scores[True].values())
            for scores in self._recovered.values()
            if scores[False] and scores[True]
        ]
        if excess:
            _write(self._summary, EXCESS, max(excess), step)


def layout(configuration: Configuration) -> dict[str, dict[str, list[Any]]]:
    """Return the charts of the CUSTOM SCALARS tab by category and title."""

    def per_site(metric: str) -> dict[str, list[Any]]:
        return {
            f"{site}: attack and control": ["Multiline", [f"^overview/{metric}/{re.escape(site)}/"]]
            for site in configuration.sites
        }

    return {
        "Recovered fraction of the images": per_site("recovered"),
        "Images re-identified": per_site("reid"),
        "Training": {
            "balanced accuracy": ["Multiline", ["^valid/balanced_accuracy$"]],
            "loss": ["Multiline", ["^train/loss$"]],
        },
    }


def markdown_card(configuration: Configuration) -> str:
    """Return the configuration as a Markdown table."""
    lines = ["| | |", "|---|---|"]
    for name, value in _rows(configuration):
        text = value if isinstance(value, str) else json.dumps(value)
        # A bar would end the cell.
        lines.append(f"| **{name}** | {text.replace('|', '&#124;')} |")
    return "\n".join(lines)


def hyperparameters(configuration: Configuration) -> dict[str, str | float]:
    """Return what runs are compared by: the same names for every run.

    Values are numbers and strings; what a job leaves open has the default that the sites use.
    """
    experiment, audit = configuration.experiment, configuration.audit
    training = TrainingSettings.from_dict(dict(experiment.get("training", {})))
    budget = audit.get("budget", {})
    return {
        "job": configuration.job,
        "sites": len(configuration.sites),
        "rounds": configuration.rounds or 0,
        "seed": experiment.get("seed", 0),
        "model": experiment.get("model", ""),
        "dataset": experiment.get("dataset", ""),
        "image size": "x".join(map(str, experiment.get("image_size", ()))),
        **{f"training/{name}": getattr(training, name) or 0 for name in _TRAINING},
        "training/per site": json.dumps(experiment.get("per_site", {})),
        "defence": "; ".join(map(defence_label, configuration.defences)) or "none",
        "audit/subject": audit.get("subject", ""),
        "audit/attacks": ", ".join(attack["name"] for attack in audit.get("attacks", ())),
        "audit/every n rounds": audit.get("every_n_rounds", 0),
        "audit/evaluations": budget.get("evaluations") or 0,
    }


def defence_label(defence: Defence) -> str:
    """Name a defence and its sites in a few words."""
    detail = {
        PERTURBATION: f"perturbation {defence.settings.get('mode', '')}".strip(),
        UPDATE_FILTER: defence.name,
        DP_SGD: "DP-SGD",
    }.get(defence.kind, defence.kind)
    return f"{detail} ({', '.join(defence.sites or ('all sites',))})"


def _write(writer: FileWriter, tag: str, value: float, step: int) -> None:
    writer.add_summary(scalar(tag, value), step)
    writer.flush()


def _rows(configuration: Configuration) -> Iterator[tuple[str, Any]]:
    yield "job", configuration.job
    yield "rounds", configuration.rounds
    yield "sites", ", ".join(configuration.sites)
    for part in (configuration.experiment, configuration.audit):
        for name, value in part.items():
            if part is configuration.audit:
                name = "audited sites" if name == "sites" else name
            yield name.replace("_", " "), value
    for defence in configuration.defences:
        yield defence_label(defence), dict(defence.settings)
    if not configuration.defences:
        yield "defence", "none"
