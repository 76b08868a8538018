"""The console command ``gradward``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gradward import __version__
from gradward.console import RunProgress, show_result
from gradward.data import DataError, load_public_set, load_split
from gradward.data.catalog import dataset_spec
from gradward.report.page import build_report
from gradward.report.records import FILE_NAME


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Tell how much of its patients' images a federation's updates give away."""


@main.command()
@click.argument("job", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sites", type=click.IntRange(1), help="Number of sites; the job's own by default.")
@click.option(
    "--workspace",
    type=click.Path(file_okay=False, path_type=Path),
    help="Run folder; runs/<job> by default. An earlier run in it is replaced.",
)
@click.option("--seed", type=click.IntRange(0), help="Seed instead of the job's.")
@click.option("--threads", type=click.IntRange(1), help="Sites at the same time; all by default.")
@click.option("--gpu", help="GPU ids as NVFlare takes them, e.g. '0,1'; CPU by default.")
@click.option(
    "--site-settings",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A gradward.json for the simulated sites: where their data are, and their policy.",
)
def run(
    job: Path,
    sites: int | None,
    workspace: Path | None,
    seed: int | None,
    threads: int | None,
    gpu: str | None,
    site_settings: Path | None,
) -> None:
    """Run JOB in NVFlare's simulator and show what leaked."""
    from gradward.flare.simulator import LOG_FILE, RunError, run_in_simulator, sites_of

    job = job.resolve()
    folder = workspace or Path("runs") / job.name
    progress = RunProgress(job.name)
    try:
        with progress:
            finished = run_in_simulator(
                job,
                folder,
                sites=sites_of(job, sites),
                threads=threads,
                seed=seed,
                gpu=gpu,
                site_settings=site_settings,
                watch=progress.show,
            )
    except RunError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.ClickException(f"stopped; {folder} keeps what was there") from None
    if finished.exit_code:
        raise click.ClickException(
            f"the simulator ended with code {finished.exit_code}; see {folder / LOG_FILE}"
        )
    if not (folder / FILE_NAME).is_file():
        raise click.ClickException(f"the run left no {FILE_NAME}; see {folder / LOG_FILE}")
    show_result(folder)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(folder: Path) -> None:
    """Build the report of a run FOLDER that holds leakage.jsonl, and print its table."""
    try:
        build_report(folder)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    show_result(folder)


@main.command()
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


class _Json(click.ParamType):
    """An option in JSON."""

    name = "json"

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            content = value if isinstance(value, self._kind) else json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)
        if not isinstance(content, self._kind):
            self.fail(f"a JSON {self._kind.__name__} is needed, got {value!r}", param, ctx)
        return content


@main.command()
@click.argument("job", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--model", required=True, help="The job's network: a name, or package.module:Class.")
@click.option("--model-options", type=_Json(dict), default={}, help="Its further arguments.")
@click.option("--dataset", required=True, help="Name of the data set in each site's settings.")
@click.option("--image-size", type=int, nargs=2, required=True, help="Height and width trained on.")
@click.option("--channels", type=click.Choice(["1", "3"]), required=True)
@click.option("--classes", type=int, required=True)
@click.option("--lr", type=float, required=True, help="Learning rate of the training script.")
@click.option("--batch-size", type=int, required=True, help="Batch size of the training script.")
@click.option("--training", type=_Json(dict), default={}, help="More of it: epochs, momentum, ...")
@click.option("--public-set", help="Data set with the public images; --dataset by default.")
@click.option(
    "--attacks",
    type=_Json(list),
    default=[{"name": "batchnorm", "max_images": 64}, {"name": "matching", "max_images": 64}],
    help="Attacks as in a job's auditor.  [default: batchnorm and matching]",
)
@click.option(
    "--budget",
    type=_Json(dict),
    default={"evaluations": 1000, "image_evaluations": 2400},
    help="Of each attack.  [default: 1000 evaluations]",
)
@click.option(
    "--perturbation",
    type=_Json(dict),
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


@main.command()
@click.argument("name")
@click.option("--site", default="site-1", show_default=True, help="Whose share to look at.")
@click.option("--image-size", type=int, nargs=2, default=(32, 32), show_default=True)
@click.option("--channels", type=click.Choice(["1", "3"]), default="3", show_default=True)
@click.option(
    "--site-settings",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A gradward.json whose 'data' says where the data set is.",
)
def data(
    name: str, site: str, image_size: tuple[int, int], channels: str, site_settings: Path | None
) -> None:
    """Check data set NAME: can everything be read, how much is there, which checksum.

    NAME is a built-in data set or one that the site's settings describe.
    """
    overrides = _data_of(site_settings) if site_settings else None
    wanted: dict[str, Any] = {"image_size": image_size, "channels": int(channels)}
    try:
        spec = dataset_spec(name, overrides)
        for split in ("training", "validation", "testing"):
            images = load_split(spec, split, site=site, **wanted)
            classes = images.labels.bincount().tolist()
            click.echo(f"{split:<12}{len(images):>6} images, per class {classes}")
        public = load_public_set(spec, name=name, **wanted)
    except DataError as error:
        raise click.ClickException(str(error)) from None
    for part in ("prior", "control", "decoys", "canary", "fit"):
        click.echo(f"{'public ' + part:<15}{len(public.part(part)):>3} images")
    click.echo(f"licence      {public.licence}\nchecksum     {public.checksum}")


@main.command()
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


def _data_of(site_settings: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(site_settings.read_text(encoding="utf-8")).get("data", {}))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise click.ClickException(f"{site_settings} is no gradward.json: {error}") from None
