"""Commands around a federation of hospitals: jobs to submit, and the kits of its parties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gradward.cli_progress import RunProgress
from gradward.console import show_result
from gradward.report.page import build_report
from gradward.report.records import FILE_NAME

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Job folder to write; ./NAME by default.",
)
@click.option(
    "--no-custom",
    is_flag=True,
    help="Leave out the custom folders: no BYOC right needed, but class allow lists that name "
    "gradward.",
)
def export(name: str, out: Path | None, no_custom: bool) -> None:
    """Write the job folder of a shipped job, e.g. quickstart."""
    from gradward.flare.shipped_jobs import export_job

    folder = out or Path(name)
    try:
        export_job(name, folder, custom_folder=not no_custom)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{folder}: run it with `gradward run {folder}` or submit it to a federation")


class JobFolder(click.Path):
    """A job folder that is there."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return its path, or say where job folders come from."""
        if not Path(value).exists():
            self.fail(
                f"there is no folder {str(value)!r} here; `gradward export NAME` writes a job "
                "folder, e.g. of quickstart",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


class Json(click.ParamType):
    """An option in JSON."""

    name = "json"

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the content, or fail as click does."""
        try:
            content = value if isinstance(value, self._kind) else json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)
        if not isinstance(content, self._kind):
            self.fail(f"a JSON {self._kind.__name__} is needed, got {value!r}", param, ctx)
        return content


@click.command()
@click.argument("job", type=JobFolder())
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--model", required=True, help="The job's network: a name, or package.module:Class.")
@click.option("--model-options", type=Json(dict), default={}, help="Its further arguments.")
@click.option("--dataset", required=True, help="Name of the data set in each site's settings.")
@click.option("--image-size", type=int, nargs=2, required=True, help="Height and width trained on.")
@click.option("--channels", type=click.Choice(["1", "3"]), required=True)
@click.option("--classes", type=int, required=True)
@click.option("--lr", type=float, required=True, help="Learning rate of the training script.")
@click.option("--batch-size", type=int, required=True, help="Batch size of the training script.")
@click.option("--training", type=Json(dict), default={}, help="More of it: epochs, momentum, ...")
@click.option("--public-set", help="Data set with the public images; --dataset by default.")
@click.option(
    "--attacks",
    type=Json(list),
    default=[{"name": "batchnorm", "max_images": 64}, {"name": "matching", "max_images": 64}],
    help="Attacks as in a job's auditor.  [default: batchnorm and matching]",
)
@click.option(
    "--budget",
    type=Json(dict),
    default={"evaluations": 1000, "image_evaluations": 2400},
    help="Of each attack.  [default: 1000 evaluations]",
)
@click.option(
    "--perturbation",
    type=Json(dict),
    help="A perturbation and its guard, for a script with the two lines of gradward.client.",
)
@click.option("--every-n-rounds", type=int, default=1, show_default=True)
@click.option("--workers", type=int, default=1, show_default=True, help="Attack processes.")
@click.option("--drain-timeout", type=float, default=1800.0, show_default=True, help="Seconds.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the attacks.")
def attach(job: Path, out: Path, **options: Any) -> None:
    """Write an audited copy of somebody else's PyTorch JOB; its code stays as it is.

    The network and the hyperparameters are those of the job's training script: what the attacker
    is told about it.
    """
    from gradward.flare.attach import attach_audit
    from gradward.flare.attach_parts import AuditParts

    experiment = {
        "model": options["model"],
        "dataset": options["dataset"],
        "image_size": list(options["image_size"]),
        "channels": int(options["channels"]),
        "num_classes": options["classes"],
        "training": {
            "lr": options["lr"],
            "batch_size": options["batch_size"],
            **options["training"],
        },
        "seed": options["seed"],
    }
    experiment |= {name: options[name] for name in ("model_options", "public_set") if options[name]}
    auditor = {name: options[name] for name in ("attacks", "budget", "every_n_rounds", "workers")}
    try:
        parts = AuditParts(experiment, auditor, options["perturbation"], options["drain_timeout"])
        attached = attach_audit(job, out, parts)
    except (TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    for note in attached.notes:
        click.echo(f"Note: {note}")
    click.echo(f"{out}: the job with an audit of its task {attached.train_task!r}")


@click.command()
@click.argument(
    "kit", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
def doctor(kit: Path | None) -> None:
    """Say what a site or a server still lacks; KIT is its startup kit.

    Without KIT only this machine is looked at. Ends with 1 where there is a problem.
    """
    from gradward.flare.doctor import PROBLEM, examine, table

    findings = examine(kit)
    click.echo(table(findings))
    if any(finding.level == PROBLEM for finding in findings):
        raise SystemExit(1)


@click.command()
@click.argument("kit", type=FOLDER)
@click.option(
    "--settings",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A gradward.json: where the data are, device, limits.",
)
@click.option("--policy", type=FOLDER, help="A folder of poc/site-policies.")
@click.option("--gpus", type=click.IntRange(0), default=0, help="GPUs offered to jobs.")
@click.option("--gpu-memory", type=click.IntRange(0), default=0, help="GiB of each of them.")
def configure(
    kit: Path, settings: Path | None, policy: Path | None, gpus: int, gpu_memory: int
) -> None:
    """Write the local folder of KIT, the startup kit of a site or a server.

    It allows GradWard's classes in jobs without code of their own, switches log streaming of a site
    off, and takes over settings and policy. Restart the party afterwards.
    """
    from gradward.flare.kit_setup import KitError, set_up_kit

    try:
        done = set_up_kit(kit, settings=settings, policy=policy, gpus=gpus, gpu_memory=gpu_memory)
    except KitError as error:
        raise click.ClickException(str(error)) from None
    for line in done:
        click.echo(f"{kit.name}: {line}")


@click.command()
@click.argument("job", type=JobFolder())
@click.option("--kit", type=FOLDER, required=True, help="Startup kit of an administrator or lead.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/submitted"),
    show_default=True,
    help="Where the result goes, in a folder named by the job's id.",
)
@click.option("--timeout", type=float, default=0.0, help="Seconds to wait; no limit by default.")
def submit(job: Path, kit: Path, out: Path, timeout: float) -> None:
    """Submit JOB to a running federation, follow it, download its result and show what leaked."""
    from gradward.flare.job_folder import RunError, check_job
    from gradward.flare.submission import SubmissionError, submit_job

    progress, taken = RunProgress(job.resolve().name), list[str]()
    try:
        check_job(job)
        with progress:
            done = submit_job(
                job, kit, out, timeout=timeout, watch=progress.show, accepted=taken.append
            )
    except (RunError, SubmissionError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        if not taken:
            raise click.ClickException("stopped; nothing was submitted") from None
        raise click.ClickException(
            f"stopped watching; job {taken[0]} goes on: `nvflare job monitor {taken[0]}` follows "
            f"it, `nvflare job abort {taken[0]}` ends it"
        ) from None
    click.echo(f"Job         {done.job}")
    if (done.folder / FILE_NAME).is_file():
        build_report(done.folder)
        show_result(done.folder)
    elif done.completed:
        raise click.ClickException(f"the job left no {FILE_NAME} in {done.folder}")
    if not done.completed:
        raise click.ClickException(f"the job ended as {done.status}; see {done.folder}")


COMMANDS = (export, attach, doctor, configure, submit)
