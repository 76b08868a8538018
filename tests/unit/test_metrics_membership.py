"""Membership against pair counting, and epsilon against mechanisms whose epsilon is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from gradward.defenses.gaussian_mechanism import gaussian_sigma
from gradward.metrics import empirical_epsilon, membership_auc, membership_auc_upper

torch.set_num_threads(1)
DELTA = 1e-5


def normal(n: int, mean: float = 0.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator, dtype=torch.float64) + mean


# AUC ---------------------------------------------------------------------------------------------


def test_area_is_the_share_of_pairs_in_order() -> None:
    scores_in, scores_out = normal(40, 0.5).round(decimals=1), normal(60, seed=1).round(decimals=1)
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, b in itertools.product(scores_in.tolist(), scores_out.tolist())
    ]
    assert 0.5 in pairs, "no tie was tested"
    assert membership_auc(scores_in, scores_out) == pytest.approx(sum(pairs) / len(pairs))
    assert membership_auc(scores_in, scores_in) == 0.5
    assert membership_auc(scores_in.abs() + 9, scores_out) == 1.0


def test_upper_bound_holds_as_often_as_it_says() -> None:
    """Members one standard deviation above others: the area is ``Phi(1 / sqrt(2))``."""
    truth = float(torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(0.5).sqrt()))
    generator = torch.Generator().manual_seed(0)
    held = [
        membership_auc_upper(
            normal(60, 1.0, seed=2 * i), normal(60, seed=2 * i + 1), generator, resamples=300
        )
        >= truth
        for i in range(200)
    ]
    assert 0.90 <= sum(held) / len(held) <= 0.99


def test_upper_bound_tightens_with_more_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    few, many = (
        membership_auc_upper(normal(n), normal(n, seed=1), generator, resamples=500) - 0.5
        for n in (50, 5000)
    )
    assert 0 < many < 0.02 < few


# Epsilon -----------------------------------------------------------------------------------------


def releases(
    epsilon: float, fault: float = 1.0, seed: int = 0, runs: int = 200_000
) -> tuple[torch.Tensor, torch.Tensor]:
    """A mean query over 50 patients, each within [0, 1], with and without a patient at 1.

    The others are at 0, the worst case: the release's distance between the two is its sensitivity.
    """
    patients, sensitivity = 50, 1 / 50
    sigma = fault * gaussian_sigma(epsilon, DELTA, sensitivity)
    present = torch.zeros(patients, dtype=torch.float64)
    present[0] = 1.0
    absent = torch.zeros(patients, dtype=torch.float64)
    return (
        present.mean() + sigma * normal(runs, seed=2 * seed),
        absent.mean() + sigma * normal(runs, seed=2 * seed + 1),
    )


@pytest.mark.parametrize("epsilon", [1.0, 2.0, 4.0, 8.0])
def test_a_worst_case_shows_between_half_and_all_of_epsilon(epsilon: float) -> None:
    assert epsilon / 2 < empirical_epsilon(*releases(epsilon), DELTA) <= epsilon


@pytest.mark.parametrize("epsilon", [1.0, 2.0, 4.0, 8.0])
def test_half_of_the_noise_is_caught(epsilon: float) -> None:
    """At epsilon 8 the attack has one false alarm in 40,000 runs, so it takes many to prove it."""
    assert empirical_epsilon(*releases(epsilon, fault=0.5, runs=1_000_000), DELTA) > epsilon


def test_a_correct_mechanism_is_not_accused() -> None:
    found = [empirical_epsilon(*releases(1.0, seed=seed), DELTA) for seed in range(20)]
    assert max(found) <= 1.0


def test_randomised_response_shows_its_epsilon() -> None:
    """Scores that are answers: the truth with probability 3/4, so epsilon is log 3."""
    generator = torch.Generator().manual_seed(0)
    told = (torch.rand(100_000, generator=generator) < 0.75).double()
    denied = (torch.rand(100_000, generator=generator) < 0.25).double()
    assert 0.9 * math.log(3) < empirical_epsilon(told, denied, 0.0) <= math.log(3)


@pytest.mark.parametrize("told", ["presence", "absence"])
def test_what_delta_allows_is_not_held_against_epsilon(told: str) -> None:
    """A mechanism that keeps silent, but tells all in one run of ten: epsilon 0, delta .1."""
    present, absent = normal(20_000), normal(20_000, seed=1)
    tenth = torch.arange(20_000) % 10 == 0
    if told == "presence":
        present = torch.where(tenth, 100.0, present)
    else:
        absent = torch.where(tenth, -100.0, absent)
    assert empirical_epsilon(present, absent, 0.1) == 0.0
    assert empirical_epsilon(present, absent, 0.0) > 4.0


def test_luck_is_not_taken_for_proof() -> None:
    """The Laplace mechanism shows its epsilon at every threshold beyond the others' centre.

    So there are many to be lucky with. The bound may be wrong in one audit of five here and is in
    about one of a hundred; with the threshold judged on the scores that chose it, in one of five.
    """
    epsilon, wrong = 0.3, 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        present, absent = torch.from_numpy(rng.laplace(size=(2, 400)))
        wrong += empirical_epsilon(present + epsilon, absent, 0.0, confidence=0.8) > epsilon
    assert wrong <= 15


def test_nothing_is_proved_of_scores_that_tell_nothing() -> None:
    found = [
        empirical_epsilon(normal(400, seed=2 * i), normal(400, seed=2 * i + 1), 0.0)
        for i in range(200)
    ]
    assert sum(value > 0 for value in found) <= 10, "wrong more often than one time in twenty"


def test_perfect_scores_prove_what_their_number_can() -> None:
    """No error in n/2 runs: an error rate up to ``1 - .025^(2/n)`` is left possible."""
    n = 1000
    possible = 1 - 0.025 ** (2 / n)
    found = empirical_epsilon(normal(n, 100.0), normal(n, seed=1), 0.0)
    assert found == pytest.approx(math.log((1 - possible) / possible), rel=1e-9)


def test_members_that_score_low_prove_nothing() -> None:
    assert empirical_epsilon(normal(1000, -3.0), normal(1000, seed=1), DELTA) == 0.0


def test_errors() -> None:
    scores = normal(10)
    generator = torch.Generator()
    for wrong in (scores[:0], scores[None], torch.full((3,), torch.nan)):
        with pytest.raises(ValueError, match="scores"):
            membership_auc(scores, wrong)
        with pytest.raises(ValueError, match="scores"):
            empirical_epsilon(wrong, scores, DELTA)
    with pytest.raises(ValueError, match="two scores"):
        empirical_epsilon(scores, scores[:1], DELTA)
    with pytest.raises(ValueError, match="delta"):
        empirical_epsilon(scores, scores, 1.0)
    for confidence in (0.0, 1.0):
        with pytest.raises(ValueError, match="confidence"):
            empirical_epsilon(scores, scores, DELTA, confidence)
        with pytest.raises(ValueError, match="confidence"):
            membership_auc_upper(scores, scores, generator, confidence)
