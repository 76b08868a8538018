"""Runs what the records lack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from gradward.remaining import Steps

from .cases import CASES
from .contenders import CONTENDERS, Contender, Outcome, run_ours
from .instances import Instance, make_instance
from .peers import Peers
from .scoring import score
from .store import Cell, Record, Store

Say = Callable[[str], None]
Run = Callable[[Contender, Instance, float], Outcome]


def plan(
    cases: Iterable[str],
    pictures: int,
    seeds: int,
    budgets: Sequence[float],
    tools: Sequence[str],
) -> list[Cell]:
    """Return the cells of a run, victims by victims.

    Args:
        cases: names.
        pictures: groups of victims of each case.
        seeds: of each group.
        budgets: CPU seconds; controls get the longest only.
        tools: whose contenders run; attacks that GradWard lacks do not.
    """
    return [
        Cell(case, contender.name, picture, seed, budget)
        for case in cases
        for picture in range(pictures)
        for seed in range(seeds)
        for contender in CONTENDERS[case]
        for budget in (budgets[-1:] if contender.control else budgets)
        if contender.tool in tools and contender.known
    ]


def run_study(cells: Sequence[Cell], store: Store, run: Run, cache: Path, say: Say) -> None:
    """Run the cells that the store lacks.

    Args:
        cells: of one group of victims in a row share its making.
        store: of the records.
        run: runs a contender.
        cache: folder of trained models.
        say: told of every record, of how many cells there are and how long the rest takes.

    Raises:
        KeyboardInterrupt: the records so far are in the store.
    """
    missing = [cell for cell in cells if not store.done(cell)]
    steps = Steps(len(missing))
    for (name, picture, seed), group in groupby(missing, lambda c: (c.case, c.picture, c.seed)):
        try:
            instance = make_instance(CASES[name], picture, seed, cache)
        except IndexError as error:
            say(f"{name}: {error}")
            steps.skip(len(list(group)))
            continue
        by_name = {contender.name: contender for contender in CONTENDERS[name]}
        for cell in group:
            outcome = run(by_name[cell.contender], instance, cell.budget)
            record = record_of(cell, outcome, instance)
            store.add(record)
            say(f"{steps.next()} {_line(record)}")


def runner(peers: Peers) -> Run:
    """Return what runs a contender, whosever it is."""

    def run(contender: Contender, instance: Instance, budget: float) -> Outcome:
        if contender.tool == "gradward":
            return run_ours(contender, instance, budget)
        return peers.run(contender, instance, budget)

    return run


def record_of(cell: Cell, outcome: Outcome, instance: Instance) -> Record:
    """Score an outcome against the truth that its contender did not have."""
    scores = {}
    if outcome.images is not None:
        scores = score(outcome.images, instance.truth, instance.prior)
    if outcome.labels is not None and instance.case.labels == "inferred":
        scores["labels"] = label_accuracy(outcome.labels, instance.update.labels)
    return Record(
        cell,
        outcome.status,
        outcome.reason,
        outcome.loss,
        outcome.evaluations,
        round(outcome.cpu_seconds, 4),
        round(outcome.seconds, 4),
        scores,
    )


def label_accuracy(found: Tensor, truth: Tensor) -> float:
    """Return the share of labels that are right, whatever their order."""
    size = int(max(found.max(), truth.max())) + 1
    counts = [torch.bincount(labels, minlength=size) for labels in (found, truth)]
    return float(torch.minimum(*counts).sum() / len(truth))


def _line(record: Record) -> str:
    cell = record.cell
    name = f"{cell.case} p{cell.picture} s{cell.seed} {cell.budget:g} s, {cell.contender}"
    if record.status != "ok":
        return f"{name}: {record.status}: {record.reason}"
    s = record.scores
    return (
        f"{name}: PSNR {s['psnr']:.1f}, SSIM {s['ssim']:.3f}, recovered {s['recovered']:.3f}, "
        f"{record.evaluations} evaluations, {record.cpu_seconds:.1f} CPU s"
    )
