"""Every defence over its own range: utility against what attackers get who know the defence.

    python benchmarks/defenses.py --quick --sets histology     # minutes, works without any files
    python benchmarks/defenses.py --sets mnist,pneumonia       # hours; stop it and call it again
    python benchmarks/defenses.py --certified                  # the curve over epsilon
    python benchmarks/defenses.py --report                     # tables, plots, verdicts

Results are one JSON line a cell in the output folder; what is there is not run again.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from defense_study.arms import CERTIFIED, FRONTIER, middle, settings_of
from defense_study.cells import plan_cells
from defense_study.certified import CERTIFIED_EFFORT
from defense_study.federation import FULL, QUICK
from defense_study.protocol import CERTIFIED_SETS, FRONTIER_SETS, SETS
from defense_study.report import write_report
from defense_study.store import ResultStore
from defense_study.study import run_study

RESULTS = Path(__file__).parent / "results" / "defenses"
ARMS = tuple(dict.fromkeys([*settings_of(FRONTIER), *settings_of(CERTIFIED)]))


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
@click.option(
    "--certified", is_flag=True, help="private arms at equal epsilon, more and larger sets"
)
@click.option("--sets", type=_names(tuple(SETS)), help="all by default")
@click.option("--arms", type=_names(ARMS), help="all by default")
@click.option("--seeds", default="0,1,2", help="numbers, separated by commas")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--report", is_flag=True, help="run nothing; write tables and plots of what is there")
def main(
    quick: bool,
    certified: bool,
    sets: list[str] | None,
    arms: list[str] | None,
    seeds: str,
    out: Path,
    report: bool,
) -> None:
    """Run what is missing, or report."""
    # One core: the figures of a study must not depend on how many a machine has.
    torch.set_num_threads(1)
    prefix = "quick-" if quick else ""
    files = {kind: out / f"{prefix}{kind}.jsonl" for kind in ("frontier", "certified")}
    if report:
        stores = {kind: ResultStore(file).results for kind, file in files.items()}
        for written in write_report(stores["frontier"], stores["certified"], out):
            click.echo(written)
        return
    chosen = CERTIFIED if certified else FRONTIER
    settings = settings_of(chosen)
    unknown = sorted(set(arms or ()) - set(settings))
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: not of this part of the study")
    if quick:
        settings = {name: (middle(own),) for name, own in settings.items()}
    cells = plan_cells(
        sets or (CERTIFIED_SETS if certified else FRONTIER_SETS),
        arms,
        [int(seed) for seed in seeds.split(",")],
        settings,
    )
    store = ResultStore(files["certified" if certified else "frontier"])
    effort = QUICK if quick else CERTIFIED_EFFORT if certified else FULL
    try:
        run_study(cells, chosen, store, effort, out / "sheets", say=click.echo)
    except KeyboardInterrupt:
        done = sum(store.done(cell) for cell in cells)
        raise click.ClickException(
            f"stopped; {done} of {len(cells)} cells are done and kept in {out}; the same call goes "
            "on with the others, --report shows these"
        ) from None


if __name__ == "__main__":
    main()
