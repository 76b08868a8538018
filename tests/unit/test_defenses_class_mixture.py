"""Draws of a class: they look like its images, not like the middle between its kinds."""

from __future__ import annotations

import torch

from gradward.defenses.class_mixture import ClassMixture, fit_mixture, rotate


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_kinds(n: int = 60) -> torch.Tensor:
    """A class of two kinds, three to one, which lie apart in the first coordinate."""
    w = torch.randn(n, 5, generator=generator(1)) * torch.tensor([0.3, 1.0, 0.5, 2.0, 1.0])
    w[:, 0] += torch.where(torch.arange(n) % 4 == 0, 3.0, -1.0)
    return w


def test_both_kinds_are_drawn_as_often_as_they_are_there_and_nothing_between() -> None:
    w = two_kinds()
    mixture = fit_mixture(w, torch.zeros(len(w), dtype=torch.int64), 1)
    first = mixture.draw(torch.zeros(4000, dtype=torch.int64), generator())[:, 0]
    assert abs(float((first > 1).float().mean()) - 0.25) < 0.03
    # One Gaussian of the same mean and variance puts an eighth of its mass between the kinds.
    assert float(((first > 0.5) & (first < 1.5)).float().mean()) < 0.03
    draws = mixture.draw(torch.zeros(20000, dtype=torch.int64), generator(2))
    torch.testing.assert_close(draws.mean(0), w.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(draws.var(0), w.var(0, correction=0), rtol=0.1, atol=0.02)


def test_classes_keep_apart_and_few_images_make_one_component() -> None:
    w = torch.cat([two_kinds(), torch.full((5, 5), 9.0) + two_kinds(5)])
    rows = torch.tensor([0] * 60 + [1] * 5)
    mixture = fit_mixture(w, rows, 2)
    assert mixture.weights[1].tolist() == [1.0, 0, 0, 0, 0, 0]
    torch.testing.assert_close(mixture.weights.sum(1), torch.ones(2))
    labels = torch.tensor([0, 1] * 500)
    draws = mixture.draw(labels, generator())
    assert draws[labels == 1].mean() > 6 > 3 > draws[labels == 0].mean()


def test_the_same_images_give_the_same_mixture_and_the_state_keeps_it() -> None:
    w = two_kinds()
    rows = torch.zeros(len(w), dtype=torch.int64)
    one, other = fit_mixture(w, rows, 1), fit_mixture(w, rows, 1)
    for kept in (other, ClassMixture.from_state(one.to_state())):
        for name, value in one.to_state().items():
            assert torch.equal(value, kept.to_state()[name])
    assert mixture_draws(one).equal(mixture_draws(other))
    assert one.draw(rows[:0], generator()).shape == (0, 5)


def mixture_draws(mixture: ClassMixture) -> torch.Tensor:
    return mixture.draw(torch.zeros(7, dtype=torch.int64), generator(3))


def test_rotating_takes_each_row_by_its_own_matrix() -> None:
    matrices = torch.randn(3, 4, 4, generator=generator())
    vectors, rows = torch.randn(10, 4, generator=generator(1)), torch.arange(10) % 3
    expected = torch.stack([v @ matrices[k] for v, k in zip(vectors, rows.tolist(), strict=True)])
    torch.testing.assert_close(rotate(vectors, matrices, rows), expected)
