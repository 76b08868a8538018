"""What the attacks shall reach, beside what they reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .contenders import CONTENDERS
from .cost import TARGET
from .counting import COUNTINGS
from .summary import Row

Measure = Literal["psnr", "ssim", "recovered"]
Against = Literal["floor", "ceiling", "above peer", "times peer"]
# Of labels; a bar for small networks.
RIGHT = 0.95
SMALL = ("lenet", "bn_cnn")


@dataclass(frozen=True)
class Target:
    """A bound on the median of a case, for a contender or its control.

    Attributes:
        case: name.
        measure: which median.
        bound: the number.
        against: at least or at most the bound, or so far above (so many times) the best peer with
            no less CPU time.
        seconds: longest budget that counts, or None.
        control: of the control instead.
        contender: which; None is the case's first.
        rival: a contender that takes the best peer's place.
    """

    case: str
    measure: Measure
    bound: float
    against: Against = "floor"
    seconds: float | None = None
    control: bool = False
    contender: str | None = None
    rival: str | None = None

    @property
    def subject(self) -> str:
        """Name of the contender that is judged."""
        named = self.contender or CONTENDERS[self.case][0].name
        return f"{named}, control" if self.control else named

    @property
    def text(self) -> str:
        """The target in words."""
        whose = f", {self.contender}" if self.contender else ""
        control = " control" if self.control else ""
        subject = f"{self.case}{whose}{control}: median {self.measure}"
        rival = f"that of {self.rival}" if self.rival else "the best peer's"
        above = f"{self.bound:g} above " if self.bound else ""
        words = {
            "floor": f"at least {self.bound:g}",
            "ceiling": f"at most {self.bound:g}",
            "above peer": f"at least {above}{rival}",
            "times peer": f"at least {self.bound:g} times {rival}",
        }
        limit = f" within {self.seconds:g} CPU s" if self.seconds else ""
        return f"{subject} {words[self.against]}{limit}"


_FEATURES = "GradWard features, learned prior"
_MATCHING = "GradWard matching, no polish"
TARGETS = (
    Target("lenet_1", "psnr", 45),
    Target("lenet_4", "psnr", 35),
    Target("bn_fc_1", "psnr", 40),
    Target("bn_fc_1", "psnr", 10, "above peer"),
    Target("bn_fc_4", "psnr", 35),
    Target("bn_fc_4", "psnr", 6, "above peer"),
    Target("bn_fc_8", "ssim", 0.8),
    Target("bn_fc_8", "ssim", 2, "times peer"),
    Target("resnet18_64", "recovered", 0.65, seconds=20),
    Target("resnet18_64", "recovered", 0.4, "above peer", seconds=20),
    Target("resnet18_64", "recovered", 0, "ceiling", control=True),
    Target("resnet18_64_withheld", "recovered", 0, "above peer", rival=_MATCHING),
    Target(
        "resnet18_64_withheld", "recovered", 0, "above peer", contender=_FEATURES, rival=_MATCHING
    ),
    Target("resnet18_64_withheld", "recovered", 0, "ceiling", control=True),
    Target("resnet18_64_8", "recovered", 0, "ceiling", control=True),
    Target("resnet18_224", "recovered", 0.5),
    Target("resnet18_224", "recovered", 0, "ceiling", control=True),
    Target("analytic_1", "psnr", 100),
)


@dataclass(frozen=True)
class Verdict:
    """A target and what was reached; ``met`` is None where a figure is missing."""

    target: str
    reached: str
    met: bool | None


def verdicts(
    rows: Sequence[Row], costs: Mapping[str, Any], labels: Mapping[str, Mapping[str, float]]
) -> list[Verdict]:
    """Judge every target by the longest budget that counts, the loops' costs and the labels.

    Args:
        rows: of the attacks.
        costs: by loop.
        labels: share of right ones by model and update.
    """
    found = [_judge(target, rows) for target in TARGETS]
    for name, row in costs.items():
        text = f"an evaluation of {name} costs at most {TARGET} of its floor"
        found.append(Verdict(text, f"{row['ratio']:.2f}", row["ratio"] <= TARGET))
    for counting in (one for one in COUNTINGS if one.model in SMALL):
        text = f"labels of eight images, {counting.name}: at least {RIGHT:.0%} right"
        shares = list(labels.get(counting.name, {}).values())
        if not shares:
            found.append(Verdict(text, "not run", None))
            continue
        mean = statistics.mean(shares)
        found.append(Verdict(text, f"{mean:.0%}", mean >= RIGHT))
    return found


def _judge(target: Target, rows: Sequence[Row]) -> Verdict:
    own = _longest(
        [
            row
            for row in rows
            if row.case == target.case
            and row.contender == target.subject
            and (target.seconds is None or row.budget <= target.seconds)
        ]
    )
    if own is None:
        return Verdict(target.text, "not run", None)
    value = own.median(target.measure)
    if target.against in ("floor", "ceiling"):
        met = value >= target.bound if target.against == "floor" else value <= target.bound
        return Verdict(target.text, f"{value:.3g}", met)
    peers = [
        row.median(target.measure)
        for row in rows
        if (row.case, row.budget) == (own.case, own.budget)
        and (row.contender == target.rival if target.rival else row.tool != "gradward")
        and row.values
    ]
    if not peers:
        return Verdict(target.text, f"{value:.3g}, no peer ran", None)
    rival = max(peers)
    compare: dict[str, Callable[[], bool]] = {
        "above peer": lambda: value - rival >= target.bound,
        "times peer": lambda: value >= target.bound * rival,
    }
    return Verdict(target.text, f"{value:.3g} against {rival:.3g}", compare[target.against]())


def _longest(rows: Sequence[Row]) -> Row | None:
    return max((row for row in rows if row.values), key=lambda row: row.budget, default=None)
