"""How long work still takes, with a clock that the test turns."""

from __future__ import annotations

import pytest

from gradward.remaining import Remaining, Steps, in_words


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_rest_takes_as_long_as_its_share_took() -> None:
    clock = Clock()
    remaining = Remaining(clock)
    assert remaining.seconds(0.0) is None, "nothing to judge by"
    clock.now += 60
    assert remaining.seconds(0.0) is None, "it has not moved"
    assert remaining.seconds(0.25) == pytest.approx(180)
    assert remaining.words(0.25) == ", about 3 min left"
    assert remaining.words(1.0) == ""


def test_what_was_done_before_the_first_look_does_not_count_as_fast() -> None:
    clock = Clock()
    remaining = Remaining(clock)
    remaining.seconds(0.8)
    clock.now += 10
    assert remaining.seconds(0.9) == pytest.approx(10)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "a few seconds"),
        (44, "about 40 s"),
        (100, "about 2 min"),
        (3600, "about 60 min"),
        (9000, "about 2.5 h"),
    ],
)
def test_words_are_as_rough_as_the_estimate(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_steps_that_fall_away_shorten_the_rest() -> None:
    clock = Clock()
    steps = Steps(10, clock)
    clock.now += 60
    assert steps.next() == "[1 of 10, about 9 min left]"
    steps.skip(5)
    clock.now += 60
    assert steps.next() == "[2 of 5, about 3 min left]"
