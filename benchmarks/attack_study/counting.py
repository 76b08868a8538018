"""How many labels can be read from an update."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gradward.attacks import Observation
from gradward.attacks.label_rehearsal import RehearsalBook
from gradward.attacks.labels import infer_labels
from gradward.models import build_model
from gradward.training import TrainingSettings

from .instances import train_client
from .pictures import load_pictures, seeded
from .store import VERSION
from .study import label_accuracy
from .trained import train_cached

BATCH = 8


@dataclass(frozen=True)
class Counting:
    """A global model whose updates of eight images, with repeated labels, tell the labels."""

    model: str
    side: int
    trained: bool

    @property
    def name(self) -> str:
        """For tables and files."""
        return f"{self.model}, {self.side}x{self.side}, {'trained' if self.trained else 'fresh'}"


COUNTINGS = (
    Counting("lenet", 32, False),
    Counting("lenet", 32, True),
    Counting("bn_cnn", 32, False),
    Counting("bn_cnn", 32, True),
    Counting("resnet18", 64, False),
    Counting("resnet18", 64, True),
)


def count_labels(
    countings: Sequence[Counting],
    groups: int,
    seeds: int,
    out: Path,
    cache: Path,
    say: Callable[[str], None],
) -> None:
    """Measure what ``labels.json`` of ``out`` lacks: the share of right labels by group and seed.

    Args:
        countings: models.
        groups: of eight images; one step on each.
        seeds: of the weights.
        out: folder of the results.
        cache: folder of trained models.
        say: told of every model.
    """
    file = out / "labels.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    if known.get("version") != VERSION:
        known = {"version": VERSION, "accuracy": {}}
    for counting in countings:
        found: dict[str, float] = known["accuracy"].setdefault(counting.name, {})
        for seed in range(seeds):
            for group in range(groups):
                key = f"group {group}, seed {seed}"
                if key not in found:
                    found[key] = round(_accuracy(counting, group, seed, cache), 4)
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known, indent=1) + "\n")
        mean = sum(found.values()) / len(found)
        say(f"labels of 8, {counting.name}: {mean:.3f} right over {len(found)} updates")


def _accuracy(counting: Counting, group: int, seed: int, cache: Path) -> float:
    pictures = load_pictures(counting.side)
    model = build_model(
        counting.model,
        in_channels=1,
        num_classes=pictures.num_classes,
        image_size=[counting.side, counting.side],
        seed=seed,
    )
    if counting.trained:
        train_cached(model, counting.model, counting.side, seed, cache)
    # Drawn with repeats, so that no site's own order of labels helps.
    order = torch.randperm(len(pictures.victims), generator=seeded(seed, group))[:BATCH]
    chosen = pictures.victims.subset(order)
    settings = TrainingSettings(lr=0.01, batch_size=BATCH)
    update, _ = train_client(model, chosen.images, chosen.labels, settings, seeded(seed, group))
    observation = Observation.from_update(model, model.state_dict(), update)
    one_step = [list(range(BATCH))]
    prior, book = pictures.prior[None], RehearsalBook(seed)
    inferred = infer_labels(observation, settings, BATCH, one_step, prior, pictures.public, book)
    return label_accuracy(inferred.values, chosen.labels)
