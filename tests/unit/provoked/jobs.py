"""In a job's configuration: what the constructors say when NVFlare builds them from JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvflare.fuel.utils.class_utils import instantiate_class

from gradward.attacks import AttackSpec, Budget
from gradward.models import build_model
from gradward.training import TrainingSettings

from ..flare_desk import experiment
from . import mistake

GATE: dict[str, Any] = {"attacks": [{"name": "batchnorm"}], "budget": {"evaluations": 5}}


def build(path: str, **arguments: Any) -> None:
    """Build a component as NVFlare does, and return its own error."""
    try:
        instantiate_class(f"gradward.flare.{path}", arguments)
    except ValueError as error:
        raise error.__cause__ or error.__context__ or error from None


def training(**changes: Any) -> None:
    experiment(training={"batch_size": 8, "lr": 0.02} | changes)


def model(name: str, **options: Any) -> None:
    build_model(name, in_channels=3, num_classes=2, image_size=[32, 32], **options)


mistake("image_size must be [height, width] of at least 8")(lambda _: experiment(image_size=[4, 4]))
mistake("channels must be 1 or 3, got …")(lambda _: experiment(channels=2))
mistake("num_classes must be")(lambda _: experiment(num_classes=1))
mistake("seed must be")(lambda _: experiment(seed=-1))
mistake("… must be a non-empty string")(lambda _: experiment(dataset=""))
mistake("… must be finite and …, got …")(lambda _: training(lr=-1))
mistake("… must be a number, got …")(lambda _: training(lr="fast"))
mistake("… must be an integer, got …")(lambda _: training(batch_size=1.5))
mistake("… must be at least 1, got …")(lambda _: training(batch_size=0))
mistake("optimizer must be")(lambda _: training(optimizer="sgdm"))
mistake("loss must be")(lambda _: training(loss="mse"))
mistake("unknown … settings")(lambda _: training(rate=1))
mistake("dp_sgd needs exactly one")(lambda _: training(dp_sgd={}))
mistake("unknown model …")(lambda _: model("resnet19"))
mistake("model …: cannot import")(lambda _: model("ward.nets:make"))
mistake("model … was not built")(lambda _: model("bn_cnn", depth=3))
mistake("attacks must be a list of objects")(lambda _: AttackSpec.check_all("matching"))
mistake("unknown attack …")(lambda _: AttackSpec("magic"))
mistake("attack … has no options …")(lambda _: AttackSpec("matching", magic=1))
mistake("a budget needs at least one of")(lambda _: Budget())
mistake("unknown perturbation settings")(
    lambda _: build("perturber.Perturbation", settings={"rat": 1})
)
mistake("mode must be one of")(lambda _: build("perturber.Perturbation", settings={"mode": "x"}))
mistake("fit_seconds must be")(lambda _: build("perturber.Perturbation", fit_seconds=0))
mistake("subject must be")(lambda _: build("auditor.InversionAuditor", **GATE, subject="dead"))
mistake("timeout must be")(lambda _: build("workflow.AuditDrain", timeout=-1))
mistake("withheld must be")(lambda _: build("aggregator.ReproducibleAggregator", withheld="all"))
mistake("withheld_buffers must be")(
    lambda _: build("guard.PerturbationGuard", withheld_buffers="no")
)
mistake("limits must name some of")(lambda _: build("gate.LeakageGate", **GATE, limits={"fun": 1}))
mistake("every_n_rounds must be")(
    lambda _: build("gate.LeakageGate", **GATE, limits={"recovered": 0.5}, every_n_rounds=0)
)
mistake("method must be one of")(lambda _: build("update_filters.UpdatePruning", method="rough"))
mistake("… must lie between")(
    lambda _: build("update_filters.UpdatePruning", method="percentile", percentile=200)
)
mistake("train_task must be")(lambda _: build("witness.TrainingWitness", train_task=""))


@mistake("….__init__() got an unexpected keyword argument")
def unknown_argument(folder: Path) -> None:
    build("trainer.LocalTrainer", epochs=3)


@mistake("min_batch_size must not exceed")
def batches(folder: Path) -> None:
    TrainingSettings(batch_size=4, lr=0.1, min_batch_size=8)
