"""What is attacked: model, images, client settings, and what the attackers are given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gradward.training import TrainingSettings


@dataclass(frozen=True)
class Case:
    """One update under attack; the same for all contenders.

    Attributes:
        title: for tables.
        model: as :func:`gradward.models.build_model` takes it.
        side: of the grey pictures, pixels.
        settings: of the client.
        n_images: of the client, in one epoch.
        trained: whether the global model was trained on other sites' images; else it is fresh.
        classes: logits of the network, with labels 0, 1, 2, ... in turn, as in the literature;
            None takes the images' own.
        labels: ``"given"`` with their batches, or ``"inferred"`` by each contender's own means.
        start: ``"prior"``, the public mean image, or ``"random"``, each contender's own noise.
        withheld: whether the update lacks BatchNorm's buffers.
        options: of the model.
    """

    title: str
    model: str
    side: int
    settings: TrainingSettings
    n_images: int = 1
    trained: bool = False
    classes: int | None = None
    labels: Literal["given", "inferred"] = "given"
    start: Literal["prior", "random"] = "random"
    withheld: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> str:
        """What the attackers are given, in words."""
        facts = [
            "trained model" if self.trained else "fresh model",
            f"labels {self.labels}",
            "start at the public mean image" if self.start == "prior" else "random start",
            f"learning rate {self.settings.lr:g} and batch size given",
        ]
        if self.withheld:
            facts.append("BatchNorm buffers withheld")
        return ", ".join(facts)


def _lenet(n_images: int) -> Case:
    return Case(
        f"LeNet (sigmoid), 32x32, one step of {n_images}",
        "lenet",
        32,
        TrainingSettings(lr=0.1, batch_size=n_images),
        n_images=n_images,
        classes=10,
    )


def _bn_fc(n_images: int, labels: Literal["given", "inferred"] = "given") -> Case:
    steps = 2 if n_images == 8 else 1
    how = f"{n_images} in two steps of 4" if steps == 2 else f"one step of {n_images}"
    return Case(
        f"BatchNorm CNN with a linear head, 32x32, {how}"
        + (", labels inferred" if labels == "inferred" else ""),
        "bn_cnn",
        32,
        TrainingSettings(lr=0.01, batch_size=n_images // steps),
        n_images=n_images,
        classes=4,
        labels=labels,
        options={"width": 16},
    )


def _resnet(side: int, n_images: int = 1, withheld: bool = False) -> Case:
    return Case(
        f"ResNet18, {side}x{side}, "
        + ("one image, one step" if n_images == 1 else f"{n_images} images in batches of 4")
        + (", BatchNorm buffers withheld" if withheld else ""),
        "resnet18",
        side,
        TrainingSettings(lr=0.05, batch_size=min(n_images, 4)),
        n_images=n_images,
        trained=True,
        start="prior",
        withheld=withheld,
    )


def _mlp(n_images: int) -> Case:
    return Case(
        f"perceptron, 32x32, one step of {n_images}",
        "attack_study.networks:mlp",
        32,
        TrainingSettings(lr=0.1, batch_size=n_images),
        n_images=n_images,
        classes=10,
    )


CASES = {
    "lenet_1": _lenet(1),
    "lenet_4": _lenet(4),
    "bn_fc_1": _bn_fc(1),
    "bn_fc_4": _bn_fc(4),
    "bn_fc_8": _bn_fc(8),
    "bn_fc_8_inferred": _bn_fc(8, "inferred"),
    "resnet18_64": _resnet(64),
    "resnet18_64_withheld": _resnet(64, withheld=True),
    "resnet18_64_8": _resnet(64, n_images=8),
    "resnet18_224": _resnet(224),
    "analytic_1": _mlp(1),
    "analytic_4": _mlp(4),
}
# What --cases takes beside the names above; "labels" and "cost" are measured by modules of theirs.
FAMILIES = {
    "lenet": ("lenet_1", "lenet_4"),
    "bn_fc": ("bn_fc_1", "bn_fc_4", "bn_fc_8", "bn_fc_8_inferred"),
    "resnet18": ("resnet18_64", "resnet18_64_withheld", "resnet18_64_8", "resnet18_224"),
    "analytic": ("analytic_1", "analytic_4"),
}
