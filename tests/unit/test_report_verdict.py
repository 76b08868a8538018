"""The verdict on a site: it must see a leak, and must not take luck for one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from gradward.report.records import LeakageRecord
from gradward.report.verdict import Verdict, in_short, judge, one_line_each
from tests.unit.stored_runs import beside_control, scored

QUIET = [(-0.1, 0.0)] * 3


def verdict_on(records: list[LeakageRecord]) -> Verdict:
    (found,) = judge(records)
    return found


def test_a_recovered_image_is_a_leak() -> None:
    found = verdict_on(beside_control([(-0.1, 0.0), (0.94, 1.0), (0.1, 0.0)], QUIET))
    assert found.level == "leaks"
    assert "0.94 of the way" in found.figures and "in round 1" in found.figures
    assert "1 of 3 tries (control: 0 of 3; blind guessing: about 0.03)" in found.figures


def test_one_image_that_is_recognised_by_luck_is_no_leak() -> None:
    """As in the defended demo: the worst round says re-identified 1.00, control 0.00."""
    found = verdict_on(
        [
            *beside_control([(-0.14, 1.0), (-0.2, 0.0), (-0.1, 0.0)], QUIET, attack="batchnorm"),
            *beside_control([(-0.1, 0.0), (-0.19, 0.0), (-0.07, 0.0)], QUIET),
        ]
    )
    assert found.level == "none"
    assert "1 of 6 tries (control: 0 of 6; blind guessing: about 0.06)" in found.figures
    limits = " ".join(found.limits)
    assert "one image" in limits and "within what luck explains" in limits


def test_the_same_luck_in_every_round_proves_nothing() -> None:
    """A frozen defence gives the same draw each round: fifty hits are one."""
    found = verdict_on(beside_control([(-0.1, 1.0)] * 50, [(-0.1, 0.0)] * 50))
    assert found.level == "partly"
    assert any("one image" in limit for limit in found.limits)


def test_many_images_told_apart_are_a_leak_though_nothing_looks_alike() -> None:
    real, control = [(-0.2, 0.4)] * 3, [(-0.2, 0.03)] * 3
    found = verdict_on(beside_control(real, control, images=32))
    assert found.level == "leaks" and "though they look unlike" in found.headline


def test_a_few_images_more_than_the_control_are_a_sign() -> None:
    real, control = [(-0.2, 0.094), (-0.1, 0.094), (-0.1, 0.156)], [(-0.1, 0.0)] * 3
    assert verdict_on(beside_control(real, control, images=32)).level == "partly"


def several(*hits: tuple[int, int], images: int = 48) -> list[LeakageRecord]:
    """Return a round of attacks that re-identified so many, and of their controls so many."""
    return [
        record
        for number, (real, control) in enumerate(hits)
        for record in beside_control(
            [(-0.2, round(real / images, 2))],
            [(-0.2, round(control / images, 2))],
            images=images,
            attack=f"attack-{number}",
        )
    ]


def test_attacks_that_each_find_too_little_are_a_sign_together() -> None:
    """3 of 48 against none come about by luck once in eight; twice that, once in seventy."""
    assert verdict_on(several((3, 0))).level == "none"
    found = verdict_on(several((3, 0), (3, 0)))
    assert found.level == "partly"
    assert "2 attacks" in found.figures and "6 of 96 tries (control: 0 of 96" in found.figures


def test_what_luck_would_seldom_bring_is_not_called_within_luck() -> None:
    """7 against 1 in all: no sign, since one attack of the two could have given one as well."""
    found = verdict_on(several((4, 1), (3, 0)))
    limits = " ".join(found.limits)
    assert found.level == "none" and "7 of 96 tries (control: 1 of 96" in found.figures
    assert "within what luck explains" not in limits
    assert "at one site in 30." in limits and "at less than one site in 40 is taken" in limits


def test_many_equal_sites_have_no_more_alarms_than_luck_is_allowed() -> None:
    """Hits and recovered fractions of both sides alike: at most one site in twenty stands out."""
    draw = random.Random(3)

    def drawn(rounds: int) -> list[tuple[float, float]]:
        return [
            (draw.gauss(0.02, 0.005), sum(draw.random() < 0.05 for _ in range(32)) / 32)
            for _ in range(rounds)
        ]

    for attacks, rounds in ((2, 3), (3, 8)):
        levels = []
        for _ in range(200):
            records = [
                record
                for number in range(attacks)
                for record in beside_control(
                    drawn(rounds), drawn(rounds), images=32, attack=f"attack-{number}"
                )
            ]
            levels.append(verdict_on(records).level)
        assert levels.count("none") >= 190


def test_a_weaker_attack_than_at_another_site_is_told() -> None:
    records = [
        *beside_control(QUIET, QUIET, evals=1000),
        *beside_control(QUIET, QUIET, site="site-2", evals=50),
        *beside_control(QUIET, QUIET, site="site-2", evals=75, attack="batchnorm"),
    ]
    first, second = judge(records)
    assert "An attack made 1000 evaluations an update here." in first.limits
    assert any("50 to 75 evaluations an update here, 1000 at site-1" in i for i in second.limits)
    assert not any("evaluation" in limit for limit in verdict_on(several((0, 0))).limits)


def test_a_control_that_does_as_well_clears_the_update() -> None:
    high = [(0.3, 0.2)] * 3
    assert verdict_on(beside_control(high, high, images=32)).level == "none"


def test_a_picture_recovered_in_part_is_a_sign_though_nobody_is_recognised() -> None:
    found = verdict_on(beside_control([(0.3, 0.0)], [(-0.1, 0.0)]))
    assert found.level == "partly" and found.headline == "Images were recovered in part"


def test_many_rounds_a_little_better_than_the_control_are_a_sign() -> None:
    real, control = [(0.05, 0.0)] * 20, [(0.0, 0.0)] * 20
    assert verdict_on(beside_control(real, control, images=32)).level == "partly"


@pytest.mark.parametrize("useless", [1, 5])
def test_useless_attacks_hide_no_leak(useless: int) -> None:
    records = beside_control([(0.9, 1.0)] * 3, QUIET)
    for number in range(useless):
        records += beside_control(QUIET, QUIET, attack=f"useless-{number}")
    found = verdict_on(records)
    assert found.level == "leaks" and "attack matching" in found.figures


def test_a_control_of_another_attack_raises_the_bar_as_well() -> None:
    records = [
        *beside_control([(0.5, 1.0)], [(-0.1, 0.0)], attack="batchnorm"),
        *beside_control([(-0.1, 0.0)], [(0.45, 1.0)], attack="matching"),
    ]
    assert verdict_on(records).level == "none"


def test_without_a_control_the_starting_picture_stands_in() -> None:
    found = verdict_on([scored(recovered=0.9, reid=1.0)])
    assert found.level == "leaks" and "starting picture alone: 0 of 1" in found.figures
    assert any("1 of 1 attacks had no control" in limit for limit in found.limits)


def test_nothing_scored_is_not_known_and_says_why() -> None:
    absent = scored(status="absent", recovered=None, reid=None, prior={})
    found = verdict_on([absent, replace(absent, round=1), replace(absent, round=2, status="ok")])
    assert found.level == "none", "one attack was scored, if only without figures"
    found = verdict_on([absent, replace(absent, round=1, status="refused")])
    assert found.level == "unknown" and "absent 1, refused 1" in found.figures


def test_a_site_without_any_record_is_not_left_out() -> None:
    found = judge(beside_control(QUIET, QUIET), ["site-1", "site-2"])
    assert [(i.site, i.level) for i in found] == [("site-1", "none"), ("site-2", "unknown")]
    assert in_short(found) == "2 sites: 1 shows no more than the controls, of 1 nothing is known."


def test_each_site_has_one_line() -> None:
    leak = beside_control([(0.9, 1.0)] * 3, QUIET, site="site-11")
    canary = [replace(record, subject="canary") for record in beside_control(QUIET, QUIET)]
    assert one_line_each(judge(leak, ["site-11", "site-2"])) == [
        "site-11  Leaks: images can be recognised in what the server rebuilt",
        "site-2   Not known: nothing was scored",
    ]
    assert one_line_each(judge([*leak, *canary]))[1] == (
        "site-1 (canary)  Not recovered by these attacks within this budget"
    )


def test_the_gravest_comes_first_and_then_the_order_of_numbers() -> None:
    leak = beside_control([(0.9, 1.0)] * 3, QUIET, site="site-11")
    quiet = [r for site in ("site-10", "site-2") for r in beside_control(QUIET, QUIET, site=site)]
    assert [item.site for item in judge(quiet + leak)] == ["site-11", "site-2", "site-10"]


def test_what_was_not_scored_is_counted_among_the_limits() -> None:
    refused = scored(number=3, status="refused", recovered=None, reid=None, prior={})
    limits = verdict_on([*beside_control(QUIET, QUIET), refused]).limits
    assert "The site scored 3 of 4 attacks (1 refused)." in limits


def test_live_and_canary_are_judged_apart() -> None:
    canary = [replace(record, subject="canary") for record in beside_control(QUIET, QUIET)]
    live, other = judge([*beside_control([(0.9, 1.0)] * 3, QUIET), *canary])
    assert (live.subject, live.level, other.subject, other.level) == (
        "live",
        "leaks",
        "canary",
        "none",
    )
    assert any(limit.startswith("The server scored") for limit in other.limits)


def test_where_update_and_control_are_alike_alarms_are_rare() -> None:
    """Drawn from one distribution, no more than one report in ten has a sign, none a leak."""
    draw = random.Random(5)

    def share() -> float:
        return sum(draw.random() < 0.03 for _ in range(32)) / 32

    levels = []
    for _ in range(100):
        real, control = ([(draw.gauss(-0.1, 0.1), share()) for _ in range(10)] for _ in range(2))
        records = beside_control(real, control, images=32)
        real, control = ([(draw.gauss(-0.2, 0.1), share()) for _ in range(10)] for _ in range(2))
        records += beside_control(real, control, images=32, attack="batchnorm")
        levels.append(verdict_on(records).level)
    assert levels.count("leaks") <= 1 and levels.count("none") >= 90
