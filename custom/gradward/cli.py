"""The console command ``gradward``."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import click

from gradward import __version__
from gradward.cli_audit import audit
from gradward.cli_deploy import COMMANDS, JobFolder
from gradward.cli_progress import RunProgress
from gradward.cli_report import report
from gradward.console import show_result
from gradward.data import DataError, load_public_set, load_split
from gradward.data.catalog import dataset_spec
from gradward.json_files import JsonFileError, read_json_object
from gradward.report.records import FILE_NAME


class _Commands(click.Group):
    """Commands that tell of a file that cannot be read or written without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            where, reason = error.filename, error.strerror or str(error)
            if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
                _, where, reason = error.args[0][0]
                reason = reason.partition(": ")[0]
            raise click.ClickException(
                f"{where or 'a file'} cannot be read or written: {reason}; correct its name or "
                "rights, or make room"
            ) from None


@click.group(cls=_Commands)
@click.version_option(__version__)
def main() -> None:
    """Tell how much of its patients' images a federation's updates give away."""


@main.command()
@click.argument("job", type=JobFolder())
@click.option("--sites", type=click.IntRange(1), help="Number of sites; the job's own by default.")
@click.option(
    "--workspace",
    type=click.Path(file_okay=False, path_type=Path),
    help="Run folder; runs/<job> by default. An earlier run in it is replaced.",
)
@click.option("--seed", type=click.IntRange(0), help="Seed instead of the job's.")
@click.option(
    "--set",
    "settings",
    metavar="COMPONENT.ARGUMENT=VALUE",
    multiple=True,
    help="Change a setting of the job for this run, e.g. UpdateNoise.fraction=0.1; repeatable.",
)
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
    settings: tuple[str, ...],
    threads: int | None,
    gpu: str | None,
    site_settings: Path | None,
) -> None:
    """Run JOB in NVFlare's simulator and show what leaked."""
    from gradward.flare.job_settings import SettingError, changed_job
    from gradward.flare.simulator import LOG_FILE, RunError, run_in_simulator, sites_of

    job = job.resolve()
    folder = workspace or Path("runs") / job.name
    _end_as_by_ctrl_c()
    progress = RunProgress(job.name)
    try:
        with changed_job(job, settings) as changed, progress:
            finished = run_in_simulator(
                changed,
                folder,
                sites=sites_of(job, sites),
                threads=threads,
                seed=seed,
                gpu=gpu,
                site_settings=site_settings,
                watch=progress.show,
            )
    except (RunError, SettingError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.ClickException(f"stopped; {_kept(folder)}") from None
    if finished.exit_code or not (folder / FILE_NAME).is_file():
        raise click.ClickException(
            f"{job.name} did not run to its end. {finished.reason}\n"
            f"Everything that was logged is in {folder / LOG_FILE}"
        )
    show_result(folder)
    for trouble in finished.troubles:
        click.echo(f"Warning: {trouble}", err=True)


def _end_as_by_ctrl_c() -> None:
    """Let a batch system, `timeout` or a closed terminal end a run so that its records are kept."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # `nohup` has it ignored, and means it.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def _kept(folder: Path) -> str:
    """Say what an interrupted run leaves."""
    file = folder / FILE_NAME
    number = len(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else 0
    if not number:
        return f"nothing was scored yet; {folder} holds the logs"
    records, them = ("1 record is", "it") if number == 1 else (f"{number} records are", "them")
    return f"{records} kept; `gradward report {folder}` shows {them}"


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


def _data_of(site_settings: Path) -> dict[str, Any]:
    try:
        data = read_json_object(site_settings).get("data", {})
    except JsonFileError as error:
        raise click.ClickException(str(error)) from None
    if not isinstance(data, dict):
        raise click.ClickException(
            f"{site_settings}: 'data' must map data set names to objects, as in docs/deployment.md"
        )
    return data


for command in (audit, report, *COMMANDS):
    main.add_command(command)
