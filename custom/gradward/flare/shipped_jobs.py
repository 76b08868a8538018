"""The jobs of `jobs/` as recipes. Copy one and change it; a test keeps folder and recipe equal."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradward.flare.auditor import InversionAuditor
from gradward.flare.experiment import Experiment
from gradward.flare.guard import PerturbationGuard
from gradward.flare.perturber import Perturbation
from gradward.flare.recipe import AuditRecipe, SiteDefence, SiteGroup
from gradward.flare.update_filters import UpdateNoise, UpdatePruning, WithholdBuffers

THREE_SITES = ("site-1", "site-2", "site-3")
SIX_SITES = (*THREE_SITES, "site-4", "site-5", "site-6")

# The embedded pictures are the same everywhere: a party with others shall not audit.
HISTOLOGY: dict[str, Any] = {
    "model": "bn_cnn",
    "dataset": "histology",
    "image_size": [32, 32],
    "channels": 3,
    "num_classes": 2,
    "public_checksum": "sha256:5130e5a413e2ff0796dc49796fe4d4ad975067acb92e3ef4020f19aec4e7e622",
    "seed": 7,
}
# A draw of the image's class, by a perturber that never saw a picture of the site.
CLASS_DRAWS = {"mode": "class", "fitted_on": "public"}


def _histology_auditor() -> InversionAuditor:
    return InversionAuditor(
        attacks=[
            {"name": "batchnorm", "max_images": 64},
            {"name": "matching", "max_images": 64},
        ],
        budget={"evaluations": 1000, "image_evaluations": 2400},
        workers=2,
    )


def _quickstart(**changes: Any) -> AuditRecipe:
    return AuditRecipe(
        sites=THREE_SITES,
        experiment=Experiment(
            **HISTOLOGY,
            training={"batch_size": 8, "lr": 0.02},
            per_site={"site-1": {"batch_size": 1}},
        ),
        auditor=_histology_auditor(),
        num_rounds=3,
        min_clients=2,
        **changes,
    )


def quickstart() -> AuditRecipe:
    """One site with a single image against two larger ones, without any defence."""
    return _quickstart(
        name="quickstart",
        description="Embedded histology patches; the one-image site against two larger ones",
    )


def quickstart_defended() -> AuditRecipe:
    """The same federation, with the one-image site perturbed and guarded."""
    return _quickstart(
        name="quickstart_defended",
        description="The quickstart again, with the one-image site's training perturbed and "
        "guarded",
        defence=SiteDefence(
            perturbation=Perturbation(per_site={"site-1": CLASS_DRAWS}),
            guard=PerturbationGuard(sites=["site-1"]),
        ),
    )


def quickstart_noise() -> AuditRecipe:
    """The same federation with noise on every site's update, for sweeps over its amount."""
    return _quickstart(
        name="quickstart_noise",
        description="The quickstart again, with noise on every site's update",
        defence=SiteDefence(update_filters=[UpdateNoise(fraction=0.1)]),
    )


def defense_comparison() -> AuditRecipe:
    """One step on one image at each of six sites, each behind a defence of its own."""
    return AuditRecipe(
        name="defense_comparison",
        description="One step on one image at every site, behind a different defence at each",
        sites=SIX_SITES,
        experiment=Experiment(
            **HISTOLOGY,
            training={"batch_size": 1, "steps": 1, "lr": 0.02},
            per_site={"site-3": {"input_noise": 0.2}},
        ),
        auditor=_histology_auditor(),
        num_rounds=2,
        min_clients=4,
        defence=SiteDefence(
            perturbation=Perturbation(per_site={"site-2": CLASS_DRAWS}),
            guard=PerturbationGuard(sites=["site-2"]),
        ),
        other_defences={
            "update_noise": SiteGroup(
                ["site-4"], SiteDefence(update_filters=[UpdateNoise(fraction=0.1)])
            ),
            "dual_pruning": SiteGroup(
                ["site-5"], SiteDefence(update_filters=[UpdatePruning(method="dual")])
            ),
            "withheld_buffers": SiteGroup(
                ["site-6"], SiteDefence(update_filters=[WithholdBuffers()])
            ),
        },
    )


def cxr_high_risk() -> AuditRecipe:
    """Chest X-rays at 64x64 with MONAI's ResNet18: the "high-risk client" and larger sites."""
    return AuditRecipe(
        name="cxr_high_risk",
        description="Chest X-rays; the one-image site of the TMI paper and sites of 8, 32 and "
        "128 images",
        sites=("site-9", *THREE_SITES),
        experiment=Experiment(
            model="resnet18",
            dataset="chest-xray",
            image_size=[64, 64],
            channels=1,
            num_classes=3,
            training={"batch_size": 8, "lr": 0.05},
            per_site={"site-9": {"batch_size": 1}},
            seed=7,
        ),
        auditor=InversionAuditor(
            attacks=[
                {"name": "batchnorm", "max_images": 128},
                {"name": "maps"},
                {"name": "spans", "learned_prior": 0.3},
                {"name": "matching", "max_images": 1},
            ],
            budget={"evaluations": 250, "image_evaluations": 400},
            every_n_rounds=3,
            workers=2,
        ),
        num_rounds=7,
        min_clients=3,
        wait_time_after_min_received=900,
        train_timeout=1800,
    )


def pneumonia_sites() -> AuditRecipe:
    """PneumoniaMNIST split by patient."""
    return AuditRecipe(
        name="pneumonia_sites",
        description="PneumoniaMNIST split by patient over three sites",
        sites=THREE_SITES,
        experiment=Experiment(
            model="bn_cnn",
            dataset="pneumonia",
            image_size=[28, 28],
            channels=1,
            num_classes=2,
            training={"batch_size": 8, "lr": 0.02, "steps": 4},
            seed=7,
        ),
        auditor=InversionAuditor(
            attacks=[{"name": "batchnorm"}, {"name": "matching"}],
            budget={"evaluations": 600, "image_evaluations": 2400},
            every_n_rounds=2,
            workers=2,
        ),
        num_rounds=6,
        min_clients=2,
    )


SHIPPED_JOBS: dict[str, Callable[[], AuditRecipe]] = {
    job.__name__: job
    for job in (
        cxr_high_risk,
        defense_comparison,
        pneumonia_sites,
        quickstart,
        quickstart_defended,
        quickstart_noise,
    )
}


def export_job(name: str, folder: Path, *, custom_folder: bool = True) -> None:
    """Write the job folder of a shipped job.

    Args:
        name: of :data:`SHIPPED_JOBS`.
        folder: to write, which must not exist; the job goes by its name.
        custom_folder: whether its apps get a ``custom`` folder, see
            :data:`~gradward.flare.job_export.CUSTOM_NOTE`.

    Raises:
        ValueError: there is no such job, or something is there already.
    """
    if name not in SHIPPED_JOBS:
        raise ValueError(f"there is no job {name!r}; known are {', '.join(SHIPPED_JOBS)}")
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another folder with --out")
    with tempfile.TemporaryDirectory() as scratch:
        SHIPPED_JOBS[name]().export(scratch)
        shutil.copytree(
            Path(scratch) / name,
            folder,
            ignore=None if custom_folder else shutil.ignore_patterns("custom"),
        )
    meta = folder / "meta.json"
    content = json.loads(meta.read_text()) | {"name": folder.resolve().name}
    meta.write_text(json.dumps(content, indent=2) + "\n")
