"""What ``gradward audit`` makes of its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from gradward.attacks import Budget
from gradward.audit import AuditError
from gradward.audit.workers import check_device
from gradward.cli_audit_attacks import attacks_of
from gradward.data import DataError
from gradward.data.folder import read_folder, read_public_folder
from gradward.data.form import ImageForm
from gradward.data.readers import read_image
from gradward.json_files import read_json
from gradward.models import build_model
from gradward.state_files import StateFileError, read_state, state_files
from gradward.training import State, TrainingSettings


class Labels(click.ParamType):
    """Class indices with commas between them."""

    name = "labels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a tensor, or fail as click does."""
        try:
            return torch.tensor([int(part) for part in value.split(",")])
        except ValueError:
            self.fail(f"{value!r} must be class indices like 0 or 1,0,1", param, ctx)


def updates_of(given: dict[str, Any]) -> list[Path] | None:
    """Return the files of several updates, or None where one is named by its file.

    Raises:
        AuditError: a folder without updates.
        StateFileError: the global state, with which they are compared, cannot be read.
    """
    named: tuple[Path, ...] = given["updates"]
    if len(named) == 1 and not named[0].is_dir():
        return None
    files: list[Path] = []
    before = read_state(given["global_file"])
    for path in named:
        if not path.is_dir():
            files.append(path)
            continue
        # The global state often lies beside the updates, under its name or another.
        inside = state_files(path)
        copies = [file for file in inside if _holds(file, before)]
        for file in copies:
            if file.absolute() != given["global_file"].absolute():
                click.echo(f"{file} holds the global state and is left out", err=True)
        found = [file for file in inside if file not in copies]
        if not found:
            raise AuditError(f"the folder {path} holds no updates; correct --update")
        files += found
    return files


def _holds(file: Path, state: State) -> bool:
    try:
        held = read_state(file)
    except StateFileError:
        # Whoever audits it says what is wrong with it.
        return False
    return held.keys() == state.keys() and all(
        held[name].dtype == value.dtype and torch.equal(held[name], value)
        for name, value in state.items()
    )


def what_is_told(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that :func:`audit_update` and :func:`audit_updates` share.

    Raises:
        ValueError, TypeError: an option, or what it names, cannot be used.
    """
    form = _form(given)
    settings = TrainingSettings(
        **{
            name: given[name]
            for name in (
                "batch_size",
                "lr",
                "epochs",
                "steps",
                "optimizer",
                "loss",
                "momentum",
                "weight_decay",
            )
        }
    )
    if ":" in given["model"] or any("." in name for name in given["attack"]):
        # What is one's own lies where one stands, as for `python -m`.
        sys.path.insert(0, str(Path.cwd()))
    model = build_model(
        given["model"],
        in_channels=form.channels,
        num_classes=given["classes"],
        image_size=list(form.size),
        **given["model_options"],
    )
    evaluations = given["evaluations"]
    return {
        "model": model,
        "image_shape": (form.channels, *form.size),
        "settings": settings,
        "n_images": given["images"],
        "prior": None if given["prior"] is None else _prior(given["prior"], form),
        "labels": given["labels"],
        "batches": None if given["batches"] is None else read_json(given["batches"]),
        "public": None
        if given["public"] is None
        else read_public_folder(given["public"], form, given["classes"], "--public"),
        "attacks": attacks_of(given),
        "budget": Budget(evaluations=evaluations)
        if evaluations is not None
        else Budget(cpu_seconds=given["budget"]),
        "seed": given["seed"],
        "update_is": given["update_is"],
        "model_name": given["model"],
    }


def truth_of(given: dict[str, Any]) -> Tensor | None:
    """Return the images behind the one update.

    Raises:
        DataError: they cannot be read.
    """
    folder = given["truth"]
    return None if folder is None else read_folder(folder, _form(given), "--truth")


def truths_of(given: dict[str, Any], files: list[Path]) -> dict[str, Path] | None:
    """Return the folder of images behind each of several updates, by the update's name.

    Raises:
        AuditError: an update has none.
    """
    folder: Path | None = given["truth"]
    if folder is None:
        return None
    truths = {file.stem: folder / file.stem for file in files}
    missing = [name for name, truth in truths.items() if not truth.is_dir()]
    if missing:
        raise AuditError(
            "with several updates --truth must hold a folder of images for each, named like the "
            f"update's file; {len(missing)} of {len(truths)} are missing, the first is "
            f"{missing[0]!r}"
        )
    return truths


def the_device(given: dict[str, Any]) -> str:
    """Return where one update is attacked.

    Raises:
        AuditError: the device is not there, or there are means that one update cannot share.
    """
    if len(given["devices"]) > 1 or (given["workers"] or 1) > 1:
        raise AuditError(
            "one update is attacked by one process on one device; --workers and several --device "
            "share several updates"
        )
    return check_device(given["devices"][0])


def _form(given: dict[str, Any]) -> ImageForm:
    return ImageForm(given["image_size"], int(given["channels"]))


def _prior(file: Path, form: ImageForm) -> Tensor:
    try:
        return form.fit(read_image(file)[None])[0]
    except DataError as error:
        raise AuditError(f"the picture that --prior names {error}") from None
