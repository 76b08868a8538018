"""Sites of a single image: what each attack gets of it, undefended and defended.

Every victim is a site of its own: it takes one step on its image, or on a draw, in batch-norm's
training mode. Each attack of the portfolio inverts the update; whoever knows the perturber takes
the very picture that was trained on, and the best guess from it. Results are one JSON line a
victim; a repeated call goes on where the last one stopped.

    python benchmarks/one_image_sites.py [--set chest-xray] [--victims 30] [--report]
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from defense_study.protocol import Trial, load_trial
from gradward.attacks import AttackSpec, Budget, Observation, run_portfolio
from gradward.data import ImageSet
from gradward.defenses.autoencoder import no_progress
from gradward.defenses.channel import GatedChannel
from gradward.defenses.perturbation_fit import divide_data, fit_channel, uniform_gates
from gradward.defenses.perturbation_settings import PerturbationSettings
from gradward.metrics.recovery import rdlv
from gradward.metrics.reidentification import gallery_ranks
from gradward.metrics.similarity import ssim
from gradward.models import build_model
from gradward.training import (
    BatchSource,
    RawImages,
    TrainingSettings,
    state_copy,
    state_difference,
    train_locally,
)

RESULTS = Path(__file__).parent / "results" / "one_image_sites"
ATTACKS = [AttackSpec("batchnorm"), AttackSpec("matching"), AttackSpec("features")]
ARMS = ("undefended", "class", "uniform 2 nats")
# Undefended, a few victims show that the attacks work.
UNDEFENDED_VICTIMS = 10
STEP = TrainingSettings(lr=0.05, batch_size=1)
GLOBAL = TrainingSettings(lr=0.05, batch_size=8, epochs=5)
ALLOWED = 0.05


def public_channels(trial: Trial) -> dict[str, GatedChannel]:
    """Fit on public images alone, for draws of the class and for gates of 2 nats."""
    settings = PerturbationSettings(mode="class", fitted_on="public")
    fitted = fit_channel(
        settings,
        divide_data(settings, trial.sites[0], trial.public),
        trial.num_classes,
        trial.generator("fit"),
        progress=no_progress,
    )
    latent = fitted.channel.latent
    return {
        "class": fitted.channel,
        "uniform 2 nats": GatedChannel(latent, uniform_gates(2.0, latent.dimensions)),
    }


def perturbed(
    arm: str, channels: dict[str, GatedChannel], lone: ImageSet, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the picture that is trained on, and what an attacker who holds it makes of it."""
    if arm == "undefended":
        return lone.images, {}
    channel = channels[arm]
    if arm == "class":
        picture, _ = channel.latent.draw(lone.labels, generator)
        return picture, {"exact x'": picture}
    w, _ = channel.whiten(lone.images, lone.labels)
    view = channel.release_fresh(w, generator)
    with torch.no_grad():
        picture = channel.picture(channel.redraw(view, generator), lone.labels)
        posterior = channel.picture(channel.gate * view, lone.labels)
    return picture, {"exact x'": picture, "posterior mean of w'": posterior}


def global_states(trial: Trial, model: nn.Module) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the untrained model and one that was trained on public images."""
    yield "untrained", state_copy(model)
    source: BatchSource = RawImages(trial.public.images, trial.public.labels)
    train_locally(model, source, GLOBAL, trial.generator("global"))
    yield "trained", state_copy(model)


def attack(
    trial: Trial, model: nn.Module, state: dict[str, Tensor], picture: Tensor, label: Tensor
) -> dict[str, Tensor]:
    """Return each attack's picture ``(1, C, H, W)`` of a one-step update."""
    model.load_state_dict(state)
    train_locally(model, RawImages(picture, label), STEP, trial.generator("step"))
    update = state_difference(model.state_dict(), state)
    model.load_state_dict(state)
    results = run_portfolio(
        Observation.from_update(model, state, update),
        prior=trial.public.images.mean(0),
        n_images=1,
        settings=STEP,
        attacks=ATTACKS,
        budget=Budget(evaluations=400),
        seed=trial.seed,
    )
    return {result.attack: result.images for result in results if result.images is not None}


def chance(trial: Trial, victims: int) -> float:
    """Return the share of victims that a guess among those of the right class would hit."""
    images = trial.sites[0]
    labels = images.labels[_one_a_patient(images, trial.victims.tolist())[:victims]]
    return len(labels.unique()) / len(labels)


def run(trial: Trial, victims: int, out: Path) -> None:
    """Attack what the results lack, one line a victim."""
    done = {
        (row["state"], row["arm"], row["victim"])
        for row in (json.loads(line) for line in _lines(out))
    }
    channels = public_channels(trial)
    images = trial.sites[0]
    positions = _one_a_patient(images, trial.victims.tolist())[:victims]
    gallery = images.images[positions]
    prior = trial.public.images.mean(0)[None]
    model = build_model(
        "bn_cnn",
        in_channels=images.images.shape[1],
        num_classes=trial.num_classes,
        image_size=images.images.shape[2:],
        seed=trial.seed,
    )
    for name, state in global_states(trial, model):
        for arm in ARMS:
            for number, position in enumerate(positions):
                if (name, arm, number) in done:
                    continue
                if arm == "undefended" and number >= UNDEFENDED_VICTIMS:
                    break
                lone = images.subset([position])
                generator = trial.generator(name, arm, number)
                picture, known = perturbed(arm, channels, lone, generator)
                found = attack(trial, model, state, picture, lone.labels) | known
                found["class mean alone"] = trial.class_means[lone.labels]
                p = ssim(prior, lone.images)
                scores = {
                    method: {
                        "rdlv": float(rdlv(ssim(guess, lone.images), p)),
                        "rank": float(gallery_ranks(guess, torch.tensor([number]), gallery)),
                    }
                    for method, guess in found.items()
                }
                row = {"state": name, "arm": arm, "victim": number, "sites": len(positions)}
                with out.open("a") as file:
                    file.write(json.dumps(row | {"scores": scores}) + "\n")
                click.echo(f"{name}, {arm}, victim {number + 1} of {len(positions)}")


def report(out: Path, luck: float) -> str:
    """Return a Markdown table of medians over the victims, and whether the bar is reached.

    Args:
        out: the results.
        luck: share of victims that are re-identified by guessing within the class.
    """
    rows = [json.loads(line) for line in _lines(out)]
    text = [
        "| model | arm | attack | victims | median RDLV | class mean's + .05 | re-ID | by luck |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for state, arm in dict.fromkeys((row["state"], row["arm"]) for row in rows):
        own = [row["scores"] for row in rows if (row["state"], row["arm"]) == (state, arm)]
        allowed = _median([scores["class mean alone"]["rdlv"] for scores in own]) + ALLOWED
        for method in dict.fromkeys(name for scores in own for name in scores):
            values: list[dict[str, Any]] = [s[method] for s in own if method in s]
            median = _median([value["rdlv"] for value in values])
            linked = sum(value["rank"] == 1 for value in values)
            text.append(
                f"| {state} | {arm} | {method} | {len(values)} | {median:.3f}"
                f"{'' if median <= allowed else ' **above**'} | {allowed:.3f} | "
                f"{linked}/{len(values)} | {luck * len(values):.1f} |"
            )
    return "\n".join(text) + "\n"


def _one_a_patient(images: ImageSet, positions: list[int]) -> list[int]:
    patients = images.patients or tuple(map(str, range(len(images))))
    first = {patients[position]: position for position in reversed(positions)}
    return sorted(first.values())


def _median(values: list[float]) -> float:
    return float(torch.tensor(values).double().nanquantile(0.5))


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


@click.command(help=__doc__)
@click.option("--set", "name", default="chest-xray", help="a set of the defence study")
@click.option("--victims", default=30, help="one-image sites")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--report", "only_report", is_flag=True, help="run nothing")
def main(name: str, victims: int, out: Path, only_report: bool) -> None:
    """Run what is missing and write the table."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}.jsonl"
    trial = load_trial(name, 0, 200)
    if not only_report:
        run(trial, victims, file)
    table = report(file, chance(trial, victims))
    (out / f"{name}.md").write_text(table)
    click.echo(table)


if __name__ == "__main__":
    main()
