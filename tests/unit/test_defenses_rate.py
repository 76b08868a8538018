"""The rate against information computed without its formula, and against the best attacker."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import logsumexp
from torch.distributions import Normal, kl_divergence

from gradward.defenses.rate import (
    clip_whitened,
    degrade_gate,
    gate_rate,
    identification_bound,
    image_kl,
    uniform_gate,
)
from gradward.metrics.linkage import likelihood_linkage

torch.set_num_threads(1)
GATES = torch.tensor([0.0, 0.1, 0.35, 0.5, 0.6, 0.72, 0.9, 0.97], dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def view(w: torch.Tensor, a: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return a * w + (1 - a.square()).sqrt() * random(*w.shape, seed=seed)


def heavy_tailed(n: int, r: int) -> torch.Tensor:
    """Student's t with three degrees of freedom: what held-out images look like."""
    return random(n, r) / random(n, 3, seed=1).square().mean(1, keepdim=True).sqrt()


def agrees(rate: float, information: float) -> bool:
    """Within 5 %, both ways: an understated rate would promise too much."""
    return 0.95 < rate / information < 1.05


# Rate and information ----------------------------------------------------------------------------


def linear_gaussian_information(gates: torch.Tensor, noise: torch.Tensor) -> float:
    """``I(x; w')`` from log-determinants of covariances, for pixels ``x ~ N(0, S)``.

    ``w'`` is linear in ``x``: its gates act on the whitened leading axes of ``S``.
    """
    mixing = random(12, 12, seed=3)
    pixels = mixing @ mixing.T + 0.1 * torch.eye(12, dtype=torch.float64)
    values, axes = torch.linalg.eigh(pixels)
    whiten = (axes[:, -len(gates) :] / values[-len(gates) :].sqrt()).T
    channel = gates[:, None] * whiten
    released = channel @ pixels @ channel.T + noise.diag()
    cross = pixels @ channel.T
    joint = torch.cat([torch.cat([pixels, cross], 1), torch.cat([cross.T, released], 1)])
    return float(0.5 * (pixels.logdet() + released.logdet() - joint.logdet()))


def test_rate_is_the_information_of_a_linear_gaussian_channel() -> None:
    information = linear_gaussian_information(GATES, 1 - GATES.square())
    assert agrees(float(gate_rate(GATES)), information)
    assert float(gate_rate(GATES)) == pytest.approx(information, rel=1e-9)
    # Planted: noise a little too weak tells more than the rate says, and the check must see it.
    assert not agrees(
        float(gate_rate(GATES)), linear_gaussian_information(GATES, (1 - GATES) * 0.8)
    )


def test_rate_is_the_information_by_monte_carlo() -> None:
    a = torch.tensor([0.75, 0.5], dtype=torch.float64)
    spread = (1 - a.square()).sqrt()
    w = random(4000, 2)
    released = view(w, a)
    # Log-densities of every view under every image, less the constant that cancels.
    logs = -0.5 * torch.cdist(released / spread, a * w / spread).square()
    information = (logs.diagonal() - logs.logsumexp(1) + math.log(len(w))).mean()
    assert agrees(float(gate_rate(a)), float(information))


def test_kl_is_that_of_two_normal_distributions() -> None:
    w = random(50, len(GATES))
    spread = (1 - GATES.square()).sqrt()
    expected = kl_divergence(Normal(GATES * w, spread), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(image_kl(GATES, w), expected)


def test_kl_of_every_image_is_within_the_rate_after_clipping_and_not_before() -> None:
    a = torch.rand(300, generator=torch.Generator().manual_seed(2)) * 0.9
    w = heavy_tailed(2000, 300).float()
    rate = float(gate_rate(a))
    unclipped = image_kl(a, w)
    assert unclipped.mean() > rate and unclipped.max() > 5 * rate, "nothing to clip in this test"
    clipped, fraction = clip_whitened(w, a)
    assert float(image_kl(a.double(), clipped.double()).max()) <= rate
    beyond = unclipped > rate * (1 + 1e-5)
    assert fraction == pytest.approx(beyond.double().mean().item(), abs=2e-3)
    within = unclipped < rate * (1 - 1e-5)
    assert torch.equal(clipped[within], w[within]), "an image within the rate is left alone"
    direction = torch.nn.functional.cosine_similarity(clipped, w)
    assert direction.min() > 1 - 1e-5


def information_of_points(points: np.ndarray, a: float) -> float:
    """``I(w; w')`` for ``w`` uniform on ``points``, by quadrature."""
    spread = math.sqrt(1 - a * a)

    def log_density(y: float, mean: np.ndarray) -> np.ndarray:
        return -0.5 * ((y - mean) / spread) ** 2 - math.log(spread * math.sqrt(2 * math.pi))

    def integrand(y: float) -> float:
        logs = log_density(y, a * points)
        marginal = logsumexp(logs) - math.log(len(points))
        return float(np.mean(np.exp(logs) * (logs - marginal)))

    reach = float(np.abs(points).max()) * a + 8
    value, _ = quad(integrand, -reach, reach, limit=500, points=list(a * points))
    return value


def test_rate_bounds_the_information_of_images_that_are_not_gaussian() -> None:
    a = torch.tensor([0.9], dtype=torch.float64)
    rate = float(gate_rate(a))
    points = np.arange(-28.0, 29.0, 8.0)
    assert information_of_points(points, 0.9) > 2 * rate, "unclipped, they tell more"
    clipped, fraction = clip_whitened(torch.from_numpy(points)[:, None], a)
    assert fraction == 1.0
    assert information_of_points(clipped[:, 0].numpy(), 0.9) <= rate


def test_clipping_passes_gradients_and_leaves_a_closed_gate_alone() -> None:
    a = torch.tensor([0.0, 0.5], requires_grad=True)
    w = torch.tensor([[5.0, 5.0], [0.1, 0.0], [9.0, 0.0]], requires_grad=True)
    clipped, fraction = clip_whitened(w, a)
    clipped.square().sum().backward()
    assert torch.isfinite(a.grad).all() and torch.isfinite(w.grad).all()
    assert fraction == pytest.approx(1 / 3)
    closed, fraction = clip_whitened(w, torch.zeros(2))
    assert torch.equal(closed, w) and fraction == 0.0
    assert clip_whitened(w[:0], a)[1] == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_cannot_be_clipped_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        clip_whitened(torch.tensor([[value, 0.0]]), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("gates", [[1.0], [-0.1], [float("nan")], [[0.5]], [1]])
def test_what_is_no_gate_is_refused(gates: list[float]) -> None:
    with pytest.raises(ValueError, match="gates"):
        gate_rate(torch.tensor(gates))


# Gates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.01, 2.0, 10.0, 300.0])
def test_uniform_gate_has_the_rate_asked_for(rate: float) -> None:
    gates = torch.full((200,), uniform_gate(rate, 200), dtype=torch.float64)
    assert float(gate_rate(gates)) == pytest.approx(rate, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("rate", "dimensions"), [(-1.0, 3), (math.nan, 3), (1.0, 0), (99.0, 1)])
def test_a_rate_that_no_gate_has_is_refused(rate: float, dimensions: int) -> None:
    with pytest.raises(ValueError):
        uniform_gate(rate, dimensions)


def test_a_degraded_view_is_a_view_of_the_degraded_gates() -> None:
    a, c = 0.8, 0.6
    w = random(400_000)
    stored = view(w, torch.tensor(a, dtype=torch.float64))
    degraded = c * stored + math.sqrt(1 - c * c) * random(len(w), seed=2)
    gate = float(degrade_gate(torch.tensor([a]), c))
    assert float((degraded * w).mean()) == pytest.approx(gate, abs=0.01)
    assert float(degraded.var()) == pytest.approx(1.0, abs=0.01)


def test_degrading_only_degrades() -> None:
    assert gate_rate(degrade_gate(GATES, 0.9)) < gate_rate(GATES)
    assert torch.equal(degrade_gate(GATES, 1.0), GATES)
    assert gate_rate(degrade_gate(GATES, 0.0)) == 0
    for c in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="c must"):
            degrade_gate(GATES, c)


def test_two_gates_with_one_eps_give_the_image_back() -> None:
    """Why another gate is another view, however low its rate."""
    w = random(20, 6)
    eps = random(20, 6, seed=1)
    low, high = 0.05, 0.1
    first, second = (a * w + math.sqrt(1 - a * a) * eps for a in (low, high))
    s, t = math.sqrt(1 - low**2), math.sqrt(1 - high**2)
    torch.testing.assert_close((first / s - second / t) / (low / s - high / t), w)


# Identification ----------------------------------------------------------------------------------


def test_identification_bound_in_the_cases_that_are_known() -> None:
    for n in (2, 10, 100):
        assert identification_bound(0.0, n) == 1 / n
        assert identification_bound(math.log(n), n) == 1.0
        assert identification_bound(1e9, n) == 1.0
    assert identification_bound(0.5, 1) == 1.0
    # Two candidates at half of log 2: binary entropy of the bound is half a bit.
    p = identification_bound(0.5 * math.log(2), 2)
    assert p == pytest.approx(0.88997, abs=1e-5)
    fano = (2.0 + math.log(2)) / math.log(100)
    assert identification_bound(2.0, 100) < fano


@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.5, 2.0, 4.5])
@pytest.mark.parametrize("n", [2, 100, 5000])
def test_identification_bound_is_the_greatest_probability_by_brute_force(
    rate: float, n: int
) -> None:
    p = np.linspace(1 / n, 1, 1_000_001)[:-1]
    divergence = p * np.log(p * n) + (1 - p) * np.log((1 - p) / (1 - 1 / n))
    expected = p[divergence <= rate].max() if rate < math.log(n) else 1.0
    assert identification_bound(rate, n) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("rate", [0.5, 2.0, 5.0])
def test_the_best_attacker_stays_within_the_bound(rate: float) -> None:
    a = torch.full((20,), uniform_gate(rate, 20), dtype=torch.float64)
    w, _ = clip_whitened(heavy_tailed(100, 20), a)
    truth = torch.arange(100).repeat(20)
    success = likelihood_linkage(
        view(w[truth], a), w, a, truth, torch.arange(100).expand(len(truth), -1)
    )
    found = float(success.mean())
    assert found <= identification_bound(rate, 100) + 3 * math.sqrt(0.25 / len(truth))
    assert found > 2 / 100, "an attacker who finds nothing tests nothing"


@pytest.mark.parametrize(("rate", "n"), [(-1.0, 5), (math.nan, 5), (math.inf, 5), (1.0, 0)])
def test_identification_bound_refuses_what_is_no_rate(rate: float, n: int) -> None:
    with pytest.raises(ValueError):
        identification_bound(rate, n)
