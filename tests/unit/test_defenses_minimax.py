"""Learned gates: the rate they were given, against uniform ones, what the search must not do."""

from __future__ import annotations

import math

import pytest
import torch

from gradward.defenses.minimax import MOST_NATS, MinimaxSettings, gates_of, learn_gates
from gradward.defenses.rate import gate_rate
from gradward.defenses.teacher import Teacher, fit_teacher

from .perturbation_fixtures import generator, small_latent, spots

SITE = spots(240, 1)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return fit_teacher(SITE.images, SITE.labels, 2, generator(5))


@pytest.mark.parametrize("rate", [0.1, 2.0, 10.0, 40.0])
@pytest.mark.parametrize("spread", [0.0, 1.0, 20.0])
def test_the_rate_is_the_one_asked_for_however_it_is_divided(rate: float, spread: float) -> None:
    shares = spread * torch.randn(32, generator=generator())
    gates = gates_of(shares, rate)
    assert float(gate_rate(gates.double())) == pytest.approx(rate, rel=0.01)
    assert gates.max() <= math.sqrt(1 - math.exp(-2 * MOST_NATS)) + 1e-6
    if spread == 0:
        torch.testing.assert_close(gates, gates[:1].expand(32))
    else:
        order = shares.argsort()
        assert (gates[order].diff() >= -1e-6).all(), "a larger share is a larger gate"


def test_gates_have_slopes_everywhere() -> None:
    shares = torch.tensor([50.0, 0.0, -200.0, 1.0], requires_grad=True)
    gates_of(shares, 4.0).sum().backward()
    assert shares.grad is not None and torch.isfinite(shares.grad).all()


def test_more_than_every_dimension_can_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="3 nats in each of 4"):
        gates_of(torch.zeros(4), 13.0)


def test_the_teacher_knows_the_task(teacher: Teacher) -> None:
    held = spots(200, 9)
    with torch.no_grad():
        logits = teacher(held.images)[1]
    assert (logits.argmax(1) == held.labels).double().mean() > 0.95


def test_learning_moves_the_rate_to_what_the_task_needs_and_repeats(teacher: Teacher) -> None:
    """Without an adversary the teacher's features must be nearer than under uniform gates."""
    latent = small_latent()
    settings = MinimaxSettings(steps=80, privacy=0.0)

    def learn() -> torch.Tensor:
        return learn_gates(latent, SITE.images, SITE.labels, teacher, 6.0, settings, generator(6))

    gate = learn()
    torch.testing.assert_close(gate, learn(), rtol=0, atol=0)
    assert float(gate_rate(gate.double())) == pytest.approx(6.0, rel=0.02)
    uniform = gates_of(torch.zeros(latent.dimensions), 6.0)
    assert _feature_error(teacher, gate) < 0.97 * _feature_error(teacher, uniform)


def test_the_adversary_is_felt(teacher: Teacher) -> None:
    """With all weight on privacy the best linear rebuild must be worse than under uniform gates."""
    latent = small_latent()
    gate = learn_gates(
        latent,
        SITE.images,
        SITE.labels,
        teacher,
        6.0,
        MinimaxSettings(steps=80, privacy=30.0),
        generator(6),
    )
    uniform = gates_of(torch.zeros(latent.dimensions), 6.0)
    assert _wiener_error(gate) > 1.05 * _wiener_error(uniform)


def test_without_classes_in_the_latent_the_rate_goes_to_what_tells_them(teacher: Teacher) -> None:
    """What the network is to learn must be in the view, for no label brings it back."""
    latent = small_latent(conditional=False)
    settings = MinimaxSettings(steps=80)
    gate = learn_gates(latent, SITE.images, SITE.labels, teacher, 2.0, settings, generator(6))
    w = latent.white(SITE.images, SITE.labels)
    noise = torch.randn(w.shape, generator=generator(7))

    def known(gate: torch.Tensor) -> float:
        view = gate * w + (1 - gate.square()).sqrt() * noise
        with torch.no_grad():
            logits = teacher(latent.decode(view, SITE.labels))[1]
        return float((logits.argmax(1) == SITE.labels).double().mean())

    assert known(gate) > 0.9
    assert known(gates_of(torch.zeros(latent.dimensions), 2.0)) < 0.75


def _views(gate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    w = small_latent().white(SITE.images, SITE.labels)
    noise = torch.randn(8, *w.shape, generator=generator(7))
    return w, gate * w + (1 - gate.square()).sqrt() * noise


def _feature_error(teacher: Teacher, gate: torch.Tensor) -> float:
    _, views = _views(gate)
    with torch.no_grad():
        truth = teacher(SITE.images)[0]
        errors = [
            (teacher(small_latent().decode(view, SITE.labels))[0] - truth).square().mean()
            for view in views
        ]
    return float(torch.stack(errors).mean())


def _wiener_error(gate: torch.Tensor) -> float:
    _, views = _views(gate)
    with torch.no_grad():
        errors = [
            (small_latent().decode(gate * view, SITE.labels) - SITE.images).square().mean()
            for view in views
        ]
    return float(torch.stack(errors).mean())
