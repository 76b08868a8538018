"""``gradward audit``: one update on disk, without a federation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click
import torch
from torch import Tensor

from gradward.attacks import ATTACK_NAMES, AttackSpec, Budget
from gradward.attacks.portfolio import LEARNING_ATTACKS
from gradward.audit import AuditError, AuditResult, audit_update
from gradward.audit.folder import check_folder
from gradward.audit.update import CPU_SECONDS
from gradward.cli_deploy import Json
from gradward.console import AuditProgress, show_audit
from gradward.data import DataError, ImageSet
from gradward.data.folder import read_folder
from gradward.data.form import ImageForm
from gradward.data.readers import read_image
from gradward.losses import LOSSES
from gradward.models import build_model
from gradward.state_files import UpdateIs, read_state
from gradward.training import TrainingSettings
from gradward.training_settings import OPTIMIZERS

FILE = click.Path(path_type=Path)


class _Labels(click.ParamType):
    """Class indices with commas between them."""

    name = "labels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return torch.tensor([int(part) for part in value.split(",")])
        except ValueError:
            self.fail(f"{value!r} must be class indices like 0 or 1,0,1", param, ctx)


@click.command()
@click.option("--model", required=True, help="A name, or your own network as package.module:make.")
@click.option("--model-options", type=Json(dict), default={}, help="Its further arguments.")
@click.option("--global", "global_file", type=FILE, required=True, help="The global state.")
@click.option("--update", "update_file", type=FILE, required=True, help="What the client sent.")
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
@click.option("--labels", type=_Labels(), help="E.g. 1,0; inferred if not given.")
@click.option("--prior", type=FILE, help="A picture like the client's on average.")
@click.option("--public", type=FILE, help="Folder of other images like the client's.")
@click.option("--truth", type=FILE, help="Folder of the true images: scores everything.")
@click.option("--attack", type=click.Choice(ATTACK_NAMES), multiple=True, help="All by default.")
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
    "--budget", type=float, default=CPU_SECONDS, show_default=True, help="CPU seconds an attack."
)
@click.option("--evaluations", type=int, help="In place of --budget; the same result every time.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda for a GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--out", type=FILE, required=True, help="Folder to write.")
def audit(out: Path, as_json: bool, **options: Any) -> None:
    """Tell what could be rebuilt from one client's update; no federation is needed.

    States are .pt, .npz or .safetensors files; pictures are PNG, JPEG, DICOM or NIfTI, brought to
    --image-size. The control is attacked beside the update, with the same budget.
    """
    try:
        check_folder(out)
        with AuditProgress() as progress:
            result = _audit(options, progress)
        result.save(out)
    # ValueError: whatever was given, states, data, network, settings, says what is wrong with it.
    except (ValueError, TypeError, OSError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.ClickException("stopped; nothing was written") from None
    if as_json:
        click.echo(result.to_json(), nl=False)
    else:
        show_audit(result, out)


def _audit(given: dict[str, Any], progress: AuditProgress) -> AuditResult:
    form = ImageForm(given["image_size"], int(given["channels"]))
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
    if ":" in given["model"]:
        # A network of one's own lies where one stands, as for `python -m`.
        sys.path.insert(0, str(Path.cwd()))
    model = build_model(
        given["model"],
        in_channels=form.channels,
        num_classes=given["classes"],
        image_size=list(form.size),
        **given["model_options"],
    )
    evaluations = given["evaluations"]
    return audit_update(
        model,
        read_state(given["global_file"]),
        read_state(given["update_file"]),
        image_shape=(form.channels, *form.size),
        settings=settings,
        n_images=given["images"],
        prior=None if given["prior"] is None else _prior(given["prior"], form),
        labels=given["labels"],
        truth=None if given["truth"] is None else read_folder(given["truth"], form, "--truth"),
        public=None if given["public"] is None else _public(given["public"], form, given),
        attacks=[
            AttackSpec(
                name,
                restarts=given["restarts"],
                **({"learned_prior": given["learned_prior"]} if name in LEARNING_ATTACKS else {}),
            )
            for name in given["attack"] or ATTACK_NAMES
        ],
        budget=Budget(evaluations=evaluations)
        if evaluations is not None
        else Budget(cpu_seconds=given["budget"]),
        seed=given["seed"],
        device=_device(given["device"]),
        progress=progress.show,
        update_is=given["update_is"],
        model_name=given["model"],
    )


def _prior(file: Path, form: ImageForm) -> Tensor:
    try:
        return form.fit(read_image(file)[None])[0]
    except DataError as error:
        raise AuditError(f"the picture that --prior names {error}") from None


def _public(folder: Path, form: ImageForm, given: dict[str, Any]) -> ImageSet:
    images = read_folder(folder, form, "--public")
    # A folder has no labels, and a control needs some: each class in turn.
    return ImageSet(images, torch.arange(len(images)) % given["classes"])


def _device(name: str) -> str:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):
        raise AuditError(f"there is no device {name!r} here; choose cpu, or cuda:0") from None
    return name
