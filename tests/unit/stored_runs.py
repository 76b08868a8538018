"""Run folders as a server stores them, made up: figures are given or drawn from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from gradward.metrics.scores import Scores
from gradward.report.records import FILE_NAME, LeakageRecord
from gradward.report.run_folder import CONFIGURATION_FILE, SCALARS_FILE, UPDATES_FILE

KNOWLEDGE = {"labels": "inferred", "learning_rate": "given", "batch_order": "lacked"}


def scored(
    site: str = "site-1",
    number: int = 0,
    attack: str = "matching",
    *,
    control: bool = False,
    images: int = 1,
    recovered: float | None = -0.1,
    reid: float | None = 0.0,
    **rest: Any,
) -> LeakageRecord:
    """Return the record of one scored attack, or of its control."""
    prior = dict.fromkeys(field.name for field in fields(Scores)) | {
        "n_images": images,
        "ssim": 0.2,
        "recovered": 0.0,
        "reid": 0.0,
        "rank": 4.0,
        "gallery": 100,
    }
    return LeakageRecord(
        **{
            "job": "j",
            "seed": 7,
            "site": site,
            "round": number,
            "attack": attack,
            "control": control,
            "status": "ok",
            "n_images": images,
            "ssim": 0.2,
            "prior_ssim": 0.2,
            "recovered": recovered,
            "reid": reid,
            "rank": 1.0 if reid else 30.0,
            "gallery": 100,
            "prior": prior,
            "knowledge": KNOWLEDGE,
            "membership": "known",
            **rest,
        }
    )


def beside_control(
    real: Sequence[tuple[float, float]],
    control: Sequence[tuple[float, float]],
    **rest: Any,
) -> list[LeakageRecord]:
    """Return one attack over the rounds: (recovered, share re-identified) of update and control."""
    return [
        scored(number=number, control=is_control, recovered=recovered, reid=reid, **rest)
        for is_control, values in ((False, real), (True, control))
        for number, (recovered, reid) in enumerate(values)
    ]


def write_run(
    folder: Path,
    records: Sequence[LeakageRecord],
    *,
    configuration: dict[str, Any] | None = None,
    updates: Sequence[dict[str, Any]] = (),
    scalars: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write what is given, as server and sites write it."""
    lines = {
        FILE_NAME: [asdict(record) for record in records],
        UPDATES_FILE: [{"schema": 1} | update for update in updates],
        SCALARS_FILE: list(scalars),
    }
    for name, values in lines.items():
        if values or name == FILE_NAME:
            text = "".join(json.dumps(value) + "\n" for value in values)
            (folder / name).write_text(text, encoding="utf-8")
    if configuration is not None:
        text = json.dumps(configuration_of(**configuration))
        (folder / CONFIGURATION_FILE).write_text(text, encoding="utf-8")
    return folder


def configuration_of(**changes: Any) -> dict[str, Any]:
    """Return what the server writes down when a run starts."""
    return {
        "schema": 1,
        "job": "j",
        "rounds": 3,
        "sites": ["site-1", "site-2", "site-3"],
        "experiment": {"model": "bn_cnn", "dataset": "histology", "image_size": [32, 32]},
        "audit": {
            "attacks": [{"name": "batchnorm"}, {"name": "matching"}],
            "budget": {"evaluations": 1000},
            "subject": "live",
            "every_n_rounds": 1,
            "sites": None,
            "keep_reconstructions": False,
        },
        "defences": [],
    } | changes


def write_demo_run(folder: Path) -> Path:
    """Write three sites: one that leaks, one defended, and one with nothing but gaps."""
    quiet = [(-0.1, 0.0)] * 3
    records = [
        *beside_control([(0.9, 1.0), (0.92, 1.0), (0.94, 1.0)], quiet),
        *beside_control(quiet, quiet, attack="batchnorm"),
        *beside_control([(-0.14, 1.0), (-0.2, 0.0), (-0.1, 0.0)], quiet, site="site-2"),
        *[
            scored("site-3", number, status=status, reason=reason, recovered=None, reid=None)
            for number, (status, reason) in enumerate(
                [("absent", "the site sent no usable update"), ("refused", "door shut")]
            )
        ],
    ]
    defence = {"sites": ["site-2"], "kind": "perturbation", "name": "Perturbation"}
    return write_run(
        folder,
        records,
        configuration={"defences": [defence | {"settings": {"mode": "class"}}]},
        updates=[
            {"site": site, "round": number, "mode": mode, "buffers": "seen"}
            for site, mode in (("site-1", "none"), ("site-2", "class"))
            for number in range(3)
        ],
        scalars=[
            {"site": site, "tag": "valid/accuracy", "step": number, "value": 0.3 + 0.2 * number}
            for site in ("site-1", "site-2", "site-3")
            for number in range(3)
        ],
    )


def write_large_run(folder: Path, *, rounds: int = 50, sites: int = 20) -> Path:
    """Write a long run of many sites under three attacks, the odd figure drawn at random."""
    draw = random.Random(1)
    names = [f"site-{number}" for number in range(1, sites + 1)]
    records = [
        scored(
            site,
            number,
            attack,
            control=control,
            images=8 * place,
            recovered=round(draw.gauss(-0.1, 0.1), 2),
            reid=round(draw.random() * 0.05, 2),
            loss=draw.random(),
            evals=1000,
            seconds=3.5,
        )
        for place, site in enumerate(names, start=1)
        for number in range(rounds)
        for attack in ("batchnorm", "matching", "features")
        for control in (False, True)
    ]
    pairs = [(site, number) for number in range(rounds) for site in names]
    return write_run(
        folder,
        records,
        configuration={"rounds": rounds, "sites": names},
        updates=[{"site": s, "round": n, "mode": "none", "buffers": "seen"} for s, n in pairs],
        scalars=[
            {"site": s, "tag": "valid/accuracy", "step": n, "value": 0.5 + n / 200}
            for s, n in pairs
        ],
    )
