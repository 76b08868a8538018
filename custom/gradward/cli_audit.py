"""``gradward audit``: updates on disk, without a federation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click

from gradward.attacks.spec import LEARNING_ATTACKS
from gradward.audit import audit_update, audit_updates
from gradward.audit.folder import check_folder
from gradward.audit.update import CPU_SECONDS
from gradward.cli_audit_attacks import AttackName
from gradward.cli_audit_options import (
    Labels,
    the_device,
    truth_of,
    truths_of,
    updates_of,
    what_is_told,
)
from gradward.cli_deploy import Json
from gradward.cli_progress import AuditProgress, BatchProgress
from gradward.console import show_audit, show_summary
from gradward.losses import LOSSES
from gradward.state_files import UpdateIs, read_state
from gradward.training_settings import OPTIMIZERS

FILE = click.Path(path_type=Path)


@click.command()
@click.option("--model", required=True, help="A name, or your own network as package.module:make.")
@click.option("--model-options", type=Json(dict), default={}, help="Its further arguments.")
@click.option("--global", "global_file", type=FILE, required=True, help="The global state.")
@click.option(
    "--update",
    "updates",
    type=FILE,
    required=True,
    multiple=True,
    help="What a client sent: a file, several, or a folder of them.",
)
@click.option(
    "--update-is",
    type=click.Choice(get_args(UpdateIs)),
    default="auto",
    show_default=True,
    help="The client's full state, or its difference from the global one.",
)
@click.option("--image-size", type=int, nargs=2, required=True, help="Height and width, in pixels.")
@click.option("--channels", type=click.Choice(["1", "3"]), required=True)
@click.option("--classes", type=int, required=True)
@click.option("--lr", type=float, required=True, help="Learning rate of the client.")
@click.option("--batch-size", type=int, required=True, help="Of the client.")
@click.option("--images", type=click.IntRange(1), help="Their number; inferred if not given.")
@click.option("--epochs", type=int, default=1, show_default=True, help="Of the client.")
@click.option("--steps", type=int, help="Of the client, in place of --epochs.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="sgd", show_default=True)
@click.option("--loss", type=click.Choice(LOSSES), default="cross_entropy", show_default=True)
@click.option("--momentum", type=float, default=0.0, show_default=True)
@click.option("--weight-decay", type=float, default=0.0, show_default=True)
@click.option("--labels", type=Labels(), help="E.g. 1,0; inferred if not given.")
@click.option(
    "--batches",
    type=FILE,
    help="JSON file of the client's batch order, e.g. [[0, 1], [2, 3], [1, 2], [0, 3]].",
)
@click.option("--prior", type=FILE, help="A picture like the client's on average.")
@click.option(
    "--public",
    type=FILE,
    help="Folder of other images like the client's, or of a folder 0, 1, ... for each class.",
)
@click.option(
    "--truth",
    type=FILE,
    help="Folder of the true images: scores everything. Of several updates it holds a folder each, "
    "named like the update's file.",
)
@click.option(
    "--attack",
    type=AttackName(),
    multiple=True,
    help="All by default. One of your own as package.module.Class.",
)
@click.option(
    "--attack-options",
    type=Json(dict),
    default={},
    help='Options of single attacks, e.g. {"matching": {"start": "random"}}.',
)
@click.option(
    "--learned-prior",
    type=float,
    default=0.0,
    help=f"Weight of a prior learned from --public, in {' and '.join(LEARNING_ATTACKS)}; e.g. 0.3.",
)
@click.option(
    "--restarts",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Starts that share the budget.",
)
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    default=CPU_SECONDS,
    show_default=True,
    help="CPU seconds an attack.",
)
@click.option(
    "--evaluations",
    type=click.IntRange(1),
    help="In place of --budget; the same result every time.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--device",
    "devices",
    multiple=True,
    default=["cpu"],
    show_default=True,
    help="cpu, or cuda:0 for a GPU; several share the updates.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes that share several updates, a CPU thread each; one a device by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--out", type=FILE, required=True, help="Folder to write.")
def audit(out: Path, as_json: bool, **options: Any) -> None:
    """Tell what could be rebuilt from one client's update; no federation is needed.

    States are .pt, .npz or .safetensors files; pictures are PNG, JPEG, DICOM or NIfTI, brought to
    --image-size. The control is attacked beside the update, with the same budget.

    Several updates of one round are shared among --workers. Each has a folder in --out, named like
    its file; one that cannot be used does not stop the others, and then the exit code is 1.
    """
    try:
        files = updates_of(options)
        if files is None:
            _audit_one(options, out, as_json)
        else:
            _audit_several(files, options, out, as_json)
    # ValueError: whatever was given, states, data, network, settings, says what is wrong with it.
    except (ValueError, TypeError) as error:
        raise click.ClickException(str(error)) from None


def _audit_one(given: dict[str, Any], out: Path, as_json: bool) -> None:
    check_folder(out)
    told = what_is_told(given)
    try:
        with AuditProgress([spec.name for spec in told["attacks"]]) as progress:
            result = audit_update(
                told.pop("model"),
                read_state(given["global_file"]),
                read_state(given["updates"][0]),
                truth=truth_of(given),
                device=the_device(given),
                progress=progress.show,
                **told,
            )
        result.save(out)
    except KeyboardInterrupt:
        raise click.ClickException("stopped; nothing was written") from None
    if as_json:
        click.echo(result.to_json(), nl=False)
    else:
        show_audit(result, out)


def _audit_several(files: list[Path], given: dict[str, Any], out: Path, as_json: bool) -> None:
    told = what_is_told(given)
    with BatchProgress(len(files)) as progress:
        try:
            summary = audit_updates(
                told.pop("model"),
                given["global_file"],
                files,
                out,
                truths=truths_of(given, files),
                workers=given["workers"],
                devices=given["devices"],
                progress=progress.show,
                **told,
            )
        except KeyboardInterrupt:
            kept = f"{progress.finished} of {len(files)} updates are finished"
            kept += f" and kept in {out}" if progress.finished else "; nothing was written"
            raise click.ClickException(f"stopped; {kept}") from None
    if as_json:
        click.echo(summary.to_json(), nl=False)
    else:
        show_summary(summary, out)
    if not summary.complete:
        sys.exit(1)
