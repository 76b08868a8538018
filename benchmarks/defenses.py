"""Every defence over its own range: utility against what attackers get who know the defence.

    python benchmarks/defenses.py --quick --sets histology     # minutes, works without any files
    python benchmarks/defenses.py --sets mnist,pneumonia       # hours; stop it and call it again
    python benchmarks/defenses.py --report                     # tables, plots, verdicts

Results are one JSON line a cell in the output folder; what is there is not run again.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from defense_study.arms import QUICK_SETTINGS, SETTINGS
from defense_study.cells import plan_cells
from defense_study.federation import FULL, QUICK
from defense_study.protocol import SETS
from defense_study.report import write_report
from defense_study.store import ResultStore
from defense_study.study import run_study

RESULTS = Path(__file__).parent / "results" / "defenses"


def _names(known: tuple[str, ...]) -> click.ParamType:
    """Return a comma-separated list of known names as a parameter's type."""

    class Names(click.ParamType):
        name = "names"

        def convert(
            self, value: str, param: click.Parameter | None, context: click.Context | None
        ) -> list[str]:
            given = [name for name in value.split(",") if name]
            for name in given:
                if name not in known:
                    self.fail(f"{name!r} is none of {', '.join(known)}", param, context)
            return given

    return Names()


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="little effort, one setting an arm")
@click.option("--sets", type=_names(tuple(SETS)), help="all by default")
@click.option("--arms", type=_names(tuple(SETTINGS)), help="all by default")
@click.option("--seeds", default="0,1,2", help="numbers, separated by commas")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--report", is_flag=True, help="run nothing; write tables and plots of what is there")
def main(
    quick: bool,
    sets: list[str] | None,
    arms: list[str] | None,
    seeds: str,
    out: Path,
    report: bool,
) -> None:
    """Run what is missing, or report."""
    # One core: the figures of a study must not depend on how many a machine has.
    torch.set_num_threads(1)
    store = ResultStore(out / ("quick.jsonl" if quick else "full.jsonl"))
    if report:
        for file in write_report(store.results, out):
            click.echo(file)
        return
    settings = QUICK_SETTINGS if quick else SETTINGS
    cells = plan_cells(sets, arms, [int(seed) for seed in seeds.split(",")], settings)
    run_study(cells, store, QUICK if quick else FULL, out / "sheets", say=click.echo)


if __name__ == "__main__":
    main()
