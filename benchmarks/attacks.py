"""GradWard's attacks beside public ones, on the same updates with the same CPU time.

    python benchmarks/attacks.py --cases lenet,bn_fc --seeds 3 --pictures 3 --cpu-seconds 5,10
    python benchmarks/attacks.py --cases resnet18 --pictures 5 --cpu-seconds 20
    python benchmarks/attacks.py --report              # tables, verdicts and plot of what is there

The peers are installed from benchmarks/requirements.txt, here or in an environment of their own
whose interpreter --peer-python names; without them GradWard runs alone. Every finished run is one
JSON file in the output folder and is not run again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from attack_study.cases import CASES, FAMILIES
from attack_study.contenders import CONTENDERS
from attack_study.cost import COSTS, measure_costs
from attack_study.counting import COUNTINGS, count_labels
from attack_study.peers import Peers
from attack_study.report import write_report, write_versions
from attack_study.store import Store
from attack_study.study import plan, run_study, runner
from attack_study.trained import CACHE

RESULTS = Path(__file__).parent / "results" / "attacks"
EXTRAS = ("labels", "cost")


class Names(click.ParamType):
    """A comma-separated list of cases and families of them."""

    name = "names"

    def convert(
        self, value: str, param: click.Parameter | None, context: click.Context | None
    ) -> list[str]:
        """Return the cases, families resolved; refuse unknown names."""
        found: list[str] = []
        for name in filter(None, value.split(",")):
            if name not in (*CASES, *FAMILIES, *EXTRAS):
                known = ", ".join((*FAMILIES, *EXTRAS, *CASES))
                self.fail(f"{name!r} is none of {known}", param, context)
            found += FAMILIES.get(name, (name,))
        return list(dict.fromkeys(found))


class Seconds(click.ParamType):
    """A comma-separated list of positive numbers."""

    name = "seconds"

    def convert(
        self, value: str, param: click.Parameter | None, context: click.Context | None
    ) -> list[float]:
        """Return the numbers, ascending."""
        try:
            found = sorted({float(number) for number in value.split(",")})
        except ValueError:
            self.fail(f"{value!r} is no list of numbers", param, context)
        if found[0] <= 0:
            self.fail("seconds must be positive", param, context)
        return found


@click.command(help=__doc__)
@click.option(
    "--cases", type=Names(), default=",".join((*FAMILIES, *EXTRAS)), help="all by default"
)
@click.option("--seeds", type=click.IntRange(1), default=3)
@click.option("--pictures", type=click.IntRange(1), default=3, help="groups of victims a case")
@click.option("--cpu-seconds", type=Seconds(), default="5,10,20", help="of each contender")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help="trained models")
@click.option("--peer-python", default=sys.executable, help="interpreter that has the peers")
@click.option("--leakpro", type=click.Path(path_type=Path, exists=True), help="checkout of LeakPro")
@click.option("--report", is_flag=True, help="run nothing; report what is there")
def main(
    cases: Sequence[str],
    seeds: int,
    pictures: int,
    cpu_seconds: Sequence[float],
    out: Path,
    cache: Path,
    peer_python: str,
    leakpro: Path | None,
    report: bool,
) -> None:
    """Run what is missing, then report."""
    torch.set_num_threads(1)
    if report and not any((out / "records").glob("*.json")):
        raise click.ClickException(
            f"{out / 'records'} holds no records, and a report of nothing would replace the one "
            "that is there; run the study first, or name its folder with --out"
        )
    if not report:
        peers = Peers(peer_python, leakpro)
        for tool, reason in peers.missing.items():
            click.echo(f"{tool} does not run here and is left out: {reason}")
        store = Store(out / "records")
        tools = ["gradward", *peers.versions]
        attacked = [name for name in cases if name in CASES]
        for name in sorted(
            {c.attack for case in attacked for c in CONTENDERS[case] if not c.known}
        ):
            click.echo(f"this GradWard has no attack {name!r}: it is left out")
        cells = plan(attacked, pictures, seeds, cpu_seconds, tools)
        try:
            run_study(cells, store, runner(peers), cache, click.echo)
            if "labels" in cases:
                count_labels(COUNTINGS, pictures, seeds, out, cache, click.echo)
            if "cost" in cases:
                measure_costs(COSTS, out, cache, click.echo)
        except KeyboardInterrupt:
            done = sum(store.done(cell) for cell in cells)
            raise click.ClickException(
                f"stopped; {done} of {len(cells)} cells are done and kept in {out}; the same call "
                "goes on with the others, --report shows these"
            ) from None
        write_versions(out, peers.versions)
    for file in write_report(out):
        click.echo(file)


if __name__ == "__main__":
    main()
