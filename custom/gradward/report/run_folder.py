"""What a run left in the server's run folder, as readers want it: one look, all of it typed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gradward.report.records import FILE_NAME, LeakageRecord, parse_record
from gradward.report.status import read_status

CONFIGURATION_FILE = "configuration.json"
UPDATES_FILE = "updates.jsonl"
SCALARS_FILE = "scalars.jsonl"
CONFIGURATION_SCHEMA = 1
UPDATES_SCHEMA = 1

SEEN, WITHHELD, NONE = BUFFERS = ("seen", "withheld", "none")
PERTURBATION, GUARD, GATE, UPDATE_FILTER, DP_SGD = DEFENCE_KINDS = (
    "perturbation",
    "guard",
    "gate",
    "update_filter",
    "dp_sgd",
)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Defence:
    """One defence that the job asked for.

    Attributes:
        sites: names of the sites that it is meant for; None for all.
        kind: one of :data:`DEFENCE_KINDS`.
        name: of its class.
        settings: its arguments.
    """

    sites: tuple[str, ...] | None
    kind: str
    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Configuration:
    """What the job asked for, as the server wrote it when the run started.

    Attributes:
        job: its name, or NVFlare's id where it has none.
        rounds: of training; None where the job's workflow does not say.
        sites: names of the sites that the job was deployed to.
        experiment: model, data by name, hyperparameters and seed; empty without an experiment.
        audit: attacks, budget and subject; empty without an auditor.
        defences: in the order in which an update passes them.
    """

    job: str
    rounds: int | None
    sites: tuple[str, ...]
    experiment: Mapping[str, Any]
    audit: Mapping[str, Any]
    defences: tuple[Defence, ...]


@dataclass(frozen=True)
class UpdateRecord:
    """One update that the server accepted.

    Attributes:
        site, round: whose and of which round.
        mode: what the site states that it was trained on; None where it states nothing.
        buffers: ``seen`` where BatchNorm's running statistics came along, ``withheld`` where the
            model has some and none came, ``none`` where the model has none.
    """

    site: str
    round: int
    mode: str | None
    buffers: str

    def __post_init__(self) -> None:
        """Refuse an unknown word for the buffers."""
        if self.buffers not in BUFFERS:
            raise ValueError(f"buffers must be one of {BUFFERS}, got {self.buffers!r}")


@dataclass(frozen=True)
class ScalarRecord:
    """One scalar that was streamed during the run: its site, or ``server``; step is the round."""

    site: str
    tag: str
    step: int
    value: float


@dataclass(frozen=True)
class Run:
    """All that a run's folder holds; what is not there is None or empty.

    Attributes:
        folder: the server's run folder, or the copy that a simulation or a download made of it.
        records: of ``leakage.jsonl``.
        status: of ``audit_status.json``, see :mod:`gradward.report.status`.
        configuration: of ``configuration.json``.
        updates: of ``updates.jsonl``.
        scalars: of ``scalars.jsonl``, in the order in which they came.
    """

    folder: Path
    records: list[LeakageRecord]
    status: dict[str, Any]
    configuration: Configuration | None
    updates: list[UpdateRecord]
    scalars: list[ScalarRecord]


def read_run(folder: Path) -> Run:
    """Read a run's folder, also while the run goes on.

    The last line of a file that is just being written may be cut short; it is left out.

    Raises:
        ValueError: another line, or the configuration, is not of a schema that this version reads;
            names file and line.
    """
    return Run(
        folder=folder,
        records=list(_lines(folder / FILE_NAME, parse_record)),
        status=read_status(folder),
        configuration=read_configuration(folder),
        updates=list(read_updates(folder)),
        scalars=list(read_scalars(folder)),
    )


def read_updates(folder: Path) -> Iterator[UpdateRecord]:
    """Yield the records of ``updates.jsonl``; errors as :func:`read_run`."""
    return _lines(folder / UPDATES_FILE, _parse_update)


def read_scalars(folder: Path) -> Iterator[ScalarRecord]:
    """Yield the records of ``scalars.jsonl``; errors as :func:`read_run`."""
    return _lines(folder / SCALARS_FILE, _parse_scalar)


def read_configuration(folder: Path) -> Configuration | None:
    """Read ``configuration.json`` of a run's folder; None where there is none.

    Raises:
        ValueError: it is not of this schema; names the file.
    """
    file = folder / CONFIGURATION_FILE
    if not file.is_file():
        return None
    try:
        return _parse_configuration(json.loads(file.read_text(encoding="utf-8")))
    except KeyError as error:
        raise ValueError(f"{file} is no configuration of a run: {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is no configuration of a run: {error}") from None


def _parse_configuration(values: Any) -> Configuration:
    _require_schema(values, CONFIGURATION_SCHEMA)
    return Configuration(
        job=str(values["job"]),
        rounds=None if values["rounds"] is None else int(values["rounds"]),
        sites=tuple(map(str, values["sites"])),
        experiment=dict(values["experiment"]),
        audit=dict(values["audit"]),
        defences=tuple(map(parse_defence, values["defences"])),
    )


def parse_defence(values: Any) -> Defence:
    """Check an entry of the configuration's ``defences``.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    if values["kind"] not in DEFENCE_KINDS:
        raise ValueError(f"a defence must be one of {DEFENCE_KINDS}, got {values['kind']!r}")
    return Defence(
        sites=None if values["sites"] is None else tuple(map(str, values["sites"])),
        kind=values["kind"],
        name=str(values["name"]),
        settings=dict(values["settings"]),
    )


def _parse_update(values: Any) -> UpdateRecord:
    _require_schema(values, UPDATES_SCHEMA)
    return UpdateRecord(**{name: value for name, value in values.items() if name != "schema"})


def _parse_scalar(values: Any) -> ScalarRecord:
    return ScalarRecord(
        site=str(values["site"]),
        tag=str(values["tag"]),
        step=int(values["step"]),
        value=float(values["value"]),
    )


def _require_schema(values: Any, schema: int) -> None:
    if not isinstance(values, dict) or values.get("schema") != schema:
        raise ValueError(f"its schema is not {schema}")


def _lines(file: Path, parse: Callable[[Any], Item]) -> Iterator[Item]:
    if not file.is_file():
        return
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except ValueError as error:
            # Lines end with a line feed: what follows the last one is empty or not yet whole.
            if number == len(lines):
                return
            raise ValueError(f"{file}, line {number} is not JSON: {error}") from None
        try:
            yield parse(values)
        except KeyError as error:
            raise ValueError(f"{file}, line {number}: {error} is missing") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
