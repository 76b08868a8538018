"""The Gaussian mechanism against integrals, published values and Opacus."""

from __future__ import annotations

import math

import pytest
from scipy.integrate import quad
from scipy.stats import norm

from gradward.defenses.gaussian_mechanism import (
    compose_sigma,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_sigma,
    limit_patients,
)


def integrated_delta(sigma: float, epsilon: float, sensitivity: float) -> float:
    """``max over events of P(S) - exp(epsilon) Q(S)`` for the two neighbours, by integration."""

    def excess(y: float) -> float:
        return norm.pdf(y, sensitivity, sigma) - math.exp(epsilon) * norm.pdf(y, 0, sigma)

    # The excess is positive where the privacy loss is above epsilon.
    edge = epsilon * sigma**2 / sensitivity + sensitivity / 2
    value, _ = quad(excess, edge, max(edge, sensitivity) + 12 * sigma, epsabs=1e-16, limit=300)
    return float(value)


@pytest.mark.parametrize(
    ("sigma", "epsilon", "sensitivity"),
    [(1.0, 1.0, 1.0), (0.5, 4.0, 1.0), (3.0, 0.1, 2.0), (1.2, 8.0, 1.0), (7.0, 0.5, 1.0)],
)
def test_delta_is_the_integral_of_the_privacy_loss(
    sigma: float, epsilon: float, sensitivity: float
) -> None:
    expected = integrated_delta(sigma, epsilon, sensitivity)
    assert gaussian_delta(sigma, epsilon, sensitivity) == pytest.approx(expected, rel=1e-6)


def test_sigma_of_the_authors_own_code() -> None:
    """What ``calibrateAnalyticGaussianMechanism`` prints in the documentation of diPLSlib."""
    assert gaussian_sigma(1.0, 1e-5) == pytest.approx(3.730631634944469, rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 0.99])
def test_sigma_is_less_than_the_textbook_asks_for(epsilon: float) -> None:
    """Dwork and Roth 2014, theorem A.1, for epsilon below 1."""
    assert gaussian_sigma(epsilon, 1e-5) < math.sqrt(2 * math.log(1.25e5)) / epsilon


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0, 16.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.1])
def test_sigma_and_epsilon_undo_each_other_and_keep_delta(epsilon: float, delta: float) -> None:
    sigma = gaussian_sigma(epsilon, delta, 2.5)
    assert gaussian_delta(sigma, epsilon, 2.5) <= delta
    assert gaussian_delta(sigma * 0.999, epsilon, 2.5) > delta, "no more noise than needed"
    assert gaussian_epsilon(sigma, delta, 2.5) == pytest.approx(epsilon, rel=1e-8)
    assert sigma == pytest.approx(2.5 * gaussian_sigma(epsilon, delta), rel=1e-9)


def test_much_noise_needs_no_epsilon() -> None:
    assert gaussian_epsilon(1e6, 1e-5) == 0.0
    assert gaussian_epsilon(0.01, 1e-5) > 1000


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("sigma", "releases"), [(1.5, 1), (4.0, 5), (10.0, 100)])
def test_epsilon_agrees_with_opacus(sigma: float, releases: int) -> None:
    accountants = pytest.importorskip("opacus.accountants")
    gdp = pytest.importorskip("opacus.accountants.analysis.gdp")
    ours = gaussian_epsilon(compose_sigma([sigma] * releases), 1e-5)
    assert ours == pytest.approx(gdp.eps_from_mu(mu=math.sqrt(releases) / sigma, delta=1e-5))
    prv = accountants.PRVAccountant()
    prv.history = [(sigma, 1.0, releases)]
    # Its grid errs by up to .01, on the safe side.
    assert ours == pytest.approx(prv.get_epsilon(delta=1e-5), abs=0.02)


def test_releases_compose_like_their_information() -> None:
    assert compose_sigma([2.0]) == 2.0
    assert compose_sigma([1.0, 1.0, 1.0, 1.0]) == 0.5
    assert compose_sigma([3.0, 1e9]) == pytest.approx(3.0)
    whole = gaussian_epsilon(compose_sigma([2.0, 3.0]), 1e-5)
    assert whole < gaussian_epsilon(2.0, 5e-6) + gaussian_epsilon(3.0, 5e-6)
    for none in ([], [0.0], [1.0, -1.0]):
        with pytest.raises(ValueError):
            compose_sigma(none)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_parameters_that_are_none_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        gaussian_epsilon(value, 1e-5)
    with pytest.raises(ValueError, match="sensitivity"):
        gaussian_sigma(1.0, 1e-5, value)
    with pytest.raises(ValueError, match="epsilon"):
        gaussian_sigma(value, 1e-5)
    with pytest.raises(ValueError, match="delta"):
        gaussian_sigma(1.0, value)


# Patients ----------------------------------------------------------------------------------------

PATIENTS = ["a", "b", "a", "c", "a", "b", "a", "d", "c"]


def test_no_patient_has_more_images_than_allowed() -> None:
    assert limit_patients(PATIENTS, 1) == [0, 1, 3, 7]
    assert limit_patients(PATIENTS, 2) == [0, 1, 2, 3, 5, 7, 8]
    assert limit_patients(PATIENTS, 9) == list(range(9))
    assert limit_patients([], 1) == []
    with pytest.raises(ValueError, match="images_per_patient"):
        limit_patients(PATIENTS, 0)


@pytest.mark.parametrize("gone", ["a", "b", "c", "d"])
def test_a_patient_who_leaves_changes_nobody_elses_images(gone: str) -> None:
    remaining = [i for i, patient in enumerate(PATIENTS) if patient != gone]
    chosen = limit_patients([PATIENTS[i] for i in remaining], 2)
    expected = [i for i in limit_patients(PATIENTS, 2) if PATIENTS[i] != gone]
    assert [remaining[i] for i in chosen] == expected
