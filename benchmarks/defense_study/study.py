"""Runs the cells of the study, each once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from gradward.data import DataError
from gradward.metrics.judge import train_judge
from gradward.remaining import Steps
from gradward.training import State

from .adapted import attack_adapted
from .arms import ADAPTED, FRONTIER, MEMBERSHIP, NAIVE, ORACLE, UPDATES, Arm, middle
from .defence import Case, Defence, DefenceRefused
from .federation import Effort, FederationRun, federate
from .inversion import attack_naively
from .membership import audit_membership
from .oracle import attack_view, guess_class
from .protocol import FIRST_SEED, NAIVE_SETS, Trial, load_trial
from .scoring import Evidence, Scorer
from .sheets import save_sheet
from .sources import train_start
from .store import CellKey, CellResult, ResultStore
from .update_view import attack_updates

Say = Callable[[str], None]


@dataclass
class Bench:
    """What all arms of one data set and seed share.

    Attributes:
        trial: the division.
        judge: of the attacker's accuracy.
        scratch: folder for what settings can share; whoever opened the bench removes it.
        starts: public-trained states by the network's options.
    """

    trial: Trial
    judge: nn.Module
    scratch: Path
    starts: dict[str, State] = field(default_factory=dict)

    @classmethod
    def open(cls, name: str, seed: int, effort: Effort, scratch: Path) -> Bench:
        """Divide the set and train the judge, on images that nobody is attacked for."""
        trial = load_trial(name, seed, effort.victims)
        images, labels = trial.known.images, trial.known.labels
        judge = train_judge(images, labels, trial.num_classes, trial.generator("judge"))
        return cls(trial, judge, scratch)

    def start(self, defence: Defence, effort: Effort) -> State:
        """Return the state from which every arm with this network starts."""
        key = repr(sorted(defence.options.items()))
        if key not in self.starts:
            self.starts[key] = train_start(self.trial, defence, effort)
        return self.starts[key]


def run_study(
    cells: Sequence[CellKey],
    arms: Mapping[str, Arm],
    store: ResultStore,
    effort: Effort,
    sheets: Path | None = None,
    say: Say = lambda text: None,
) -> None:
    """Run what the store lacks, one after the other.

    Args:
        cells: those of one set and seed in a row share their preparation.
        arms: by name, membership audits aside.
        store: of the results.
        effort: quick or full.
        sheets: folder of contact sheets, of the first seed and a setting in the middle of each
            arm's range; None draws none.
        say: told of every cell, of how many there are and how long the rest takes.

    Raises:
        KeyboardInterrupt: the results so far are in the store.
    """
    missing = [cell for cell in cells if not store.done(cell)]
    steps = Steps(len(missing))
    for (name, seed), group in groupby(missing, key=lambda cell: (cell.set, cell.seed)):
        with TemporaryDirectory(prefix="gradward-study-") as scratch:
            try:
                bench = Bench.open(name, seed, effort, Path(scratch))
            except DataError as error:
                say(f"{name}: {error}")
                steps.skip(len(list(group)))
                continue
            for cell in group:
                arm = arms.get(cell.arm)
                shown = (
                    seed == FIRST_SEED and arm is not None and cell.setting == middle(arm.settings)
                )
                result = run_cell(cell, arm, bench, effort, sheets if shown else None)
                store.add(result)
                say(f"{steps.next()} {_line(result)}")


def run_cell(
    cell: CellKey, arm: Arm | None, bench: Bench, effort: Effort, sheets: Path | None = None
) -> CellResult:
    """Run one cell; a defence that breaks does not stop the study.

    Args:
        cell: which.
        arm: to be trained and attacked; None for a membership audit.
        bench: of the cell's set and seed.
        effort: quick or full.
        sheets: folder of contact sheets, or None.
    """
    began = time.monotonic()
    case = Case(bench.trial, cell.setting, effort, bench.scratch)
    try:
        if arm is None:
            result = _audit_membership(cell, case, bench)
        else:
            result = _train_and_attack(cell, arm, case, bench, sheets)
    except DefenceRefused as error:
        result = CellResult(cell, "refused", str(error))
    except Exception as error:
        result = CellResult(cell, "failed", f"{type(error).__name__}: {error}")
    return replace(result, seconds=round(time.monotonic() - began, 1))


def _audit_membership(cell: CellKey, case: Case, bench: Bench) -> CellResult:
    undefended = FRONTIER["none"].build(replace(case, setting="batch"))
    model, start = undefended.model(case.trial), bench.start(undefended, case.effort)
    refit, _ = MEMBERSHIP[cell.arm]
    return CellResult(cell, "ok", membership=audit_membership(case, refit, model, start))


def _train_and_attack(
    cell: CellKey, arm: Arm, case: Case, bench: Bench, sheets: Path | None
) -> CellResult:
    began = time.monotonic()
    trial, effort = bench.trial, case.effort
    defence = arm.build(case)
    fitted = time.monotonic() - began
    model = defence.model(trial)
    # Every site's batches depend on its round alone, so that arms are compared on equal orders.
    run = federate(
        trial,
        model,
        bench.start(defence, effort),
        lambda site, state, number: defence.site_update(
            model, site, state, trial.generator("train", site, number)
        ),
        effort.rounds,
        defence.serve,
    )
    trained = time.monotonic() - began - fitted
    scorer = Scorer(trial, bench.judge)
    leakage = _attack(arm.attackers, trial, defence, model, run, scorer, effort)
    if sheets is not None and arm.attackers:
        save_sheet(sheets, cell, trial, scorer)
    facts = defence.facts | {"fit_seconds": round(fitted, 1), "train_seconds": round(trained, 1)}
    return CellResult(
        cell,
        "ok",
        balanced_accuracy=[round(value, 5) for value in run.balanced_accuracy],
        leakage=leakage,
        facts=facts,
    )


def _attack(
    attackers: frozenset[str],
    trial: Trial,
    defence: Defence,
    model: nn.Module,
    run: FederationRun,
    scorer: Scorer,
    effort: Effort,
) -> dict[str, dict[str, Evidence]]:
    # Whoever sees nothing but the label has this; no attacker does worse.
    found = {"guess": {"class mean": guess_class(trial, scorer)}}
    if ORACLE in attackers and defence.view is not None:
        found["oracle"] = attack_view(trial, defence.view, scorer, effort)
    if UPDATES in attackers:
        found["updates"] = attack_updates(trial, defence, model, run, scorer, effort)
    if NAIVE in attackers and trial.name in NAIVE_SETS:
        found["naive"] = attack_naively(trial, defence, model, run, scorer, effort)
    if ADAPTED in attackers and trial.seed == FIRST_SEED:
        found["adapted"] = attack_adapted(trial, defence, model, run, scorer, effort)
    return found


def _line(result: CellResult) -> str:
    key = result.key
    name = f"{key.set} seed {key.seed} {key.arm} {key.setting}"
    if result.status != "ok":
        return f"{name}: {result.status}: {result.reason}"
    told = (
        f"balanced accuracy {result.utility:.3f}"
        if result.balanced_accuracy
        else ", ".join(f"{what} {value:.3f}" for what, value in result.membership.items())
    )
    return f"{name}: {told}, {result.seconds:.0f} s"
