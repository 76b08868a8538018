"""What a perturber costs: CPU seconds of its fit, and an epoch on its pictures over a raw one.

500 grey images of PneumoniaMNIST on one thread, at 28 and 64 pixels; the epochs take turns.

    python benchmarks/perturbation_cost.py [--sides 28,64] [--repeats 3]
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from gradward.data import ImageSet, dataset_spec, load_public_set, load_split
from gradward.defenses.ledger import PrivacyLedger
from gradward.defenses.noise import FrozenNoise, new_secret
from gradward.defenses.perturbation import SitePerturber
from gradward.defenses.perturbation_settings import PerturbationSettings
from gradward.models import build_model
from gradward.training import BatchSource, RawImages, TrainingSettings, train_locally

RESULT = Path(__file__).parent / "results" / "perturbation_cost.json"
IMAGES = 500
MODES = ("class", "learned")
NETWORKS = {"bn_cnn": 0.02, "resnet18": 0.05}


def measure(side: int, repeats: int, folder: Path) -> list[dict[str, object]]:
    """Fit both modes at one size and train on them; the limits let every perturber pass."""
    spec = dataset_spec("pneumonia")
    form: dict[str, Any] = {"image_size": (side, side), "channels": 1}
    images = load_split(spec, "training", site="site-1", **form).subset(range(IMAGES))
    public = load_public_set(spec, name="pneumonia", **form).part("fit")
    found = []
    for mode in MODES:
        settings = PerturbationSettings(mode=mode, max_linkage=1.0, min_mse=0.0)
        begun = time.process_time()
        perturber = SitePerturber.fit(
            settings,
            images,
            public,
            num_classes=2,
            noise=FrozenNoise(new_secret()),
            ledger=PrivacyLedger(folder / f"{mode}-{side}.sqlite"),
            generator=seeded(),
        )
        fit = time.process_time() - begun
        source = perturber.views(images, seeded())
        ratios = {name: epoch_ratios(name, side, images, source, repeats) for name in NETWORKS}
        found.append({"side": side, "mode": mode, "fit_cpu_seconds": round(fit, 1), **ratios})
        print(json.dumps(found[-1]), flush=True)
    return found


def epoch_ratios(
    name: str, side: int, images: ImageSet, perturbed: BatchSource, repeats: int
) -> dict[str, float]:
    """Return CPU time of an epoch on perturbed pictures over one on raw ones: median and ends."""
    raw = RawImages(images.images, images.labels)
    settings = TrainingSettings(lr=NETWORKS[name], batch_size=25)
    epoch(name, side, raw, settings)
    ratios = [
        epoch(name, side, perturbed, settings) / epoch(name, side, raw, settings)
        for _ in range(repeats)
    ]
    told = {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    return {label: round(value, 3) for label, value in told.items()}


def epoch(name: str, side: int, source: BatchSource, settings: TrainingSettings) -> float:
    """Train one epoch and return its CPU seconds."""
    model = build_model(name, in_channels=1, num_classes=2, image_size=[side, side], seed=0)
    begun = time.process_time()
    train_locally(model, source, settings, seeded())
    return time.process_time() - begun


def seeded() -> torch.Generator:
    """Return the one seed's generator."""
    return torch.Generator().manual_seed(0)


@click.command(help=__doc__)
@click.option("--sides", default="28,64", show_default=True, help="pixels, divided by commas")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
def main(sides: str, repeats: int) -> None:
    """Measure and write ``benchmarks/results/perturbation_cost.json``."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        found = [
            row for side in sides.split(",") for row in measure(int(side), repeats, Path(scratch))
        ]
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
