"""The acceptance gate against channels whose leak is known."""

from __future__ import annotations

import pytest
import torch

from gradward.data import DataError
from gradward.defenses.acceptance import (
    Limits,
    PerturbationRefused,
    joined,
    judge_channel,
)
from gradward.defenses.adversary import OracleSettings, class_means, fit_oracle
from gradward.defenses.channel import GatedChannel
from gradward.defenses.rate import identification_bound, uniform_gate

from .perturbation_fixtures import generator, small_latent, spots

SITE = spots(240, 1, patients=True)
PUBLIC = spots(120, 11, patients=True)
QUICK = OracleSettings(latent_steps=40, picture_steps=30)


def uniform(gate: float) -> GatedChannel:
    return GatedChannel(small_latent(), torch.full((small_latent().dimensions,), gate))


def judge(channel: GatedChannel, limits: Limits | None = None, **changed: object):
    arguments = {"victims": SITE, "others": PUBLIC, "attacker_images": PUBLIC} | changed
    return judge_channel(
        channel,
        **arguments,
        num_classes=2,
        limits=limits or Limits(),
        generator=generator(12),
        oracle=QUICK,
    )


def test_a_wide_gate_is_refused_with_figures_and_remedy() -> None:
    limits = Limits()
    found = judge(uniform(0.95), limits)
    assert not found.accepted
    assert found.linkage > 0.95 and found.relative_mse < 0.5
    with pytest.raises(PerturbationRefused, match=r"linkage 1\.00.*lower the rate.*'class'"):
        found.require(limits)


def test_a_shut_gate_is_accepted_at_chance() -> None:
    found = judge(uniform(0.0))
    assert found.accepted
    found.require(Limits())
    assert found.linkage == pytest.approx(1 / found.gallery)
    assert found.relative_mse > 0.9
    assert found.figures()["victims"] == 150


def test_linkage_keeps_the_bound_of_the_rate() -> None:
    gate = uniform(uniform_gate(1.0, small_latent().dimensions))
    found = judge(gate)
    assert 1 / found.gallery < found.linkage < identification_bound(gate.rate, found.gallery)


@pytest.mark.parametrize(
    "limits", [Limits(max_linkage=0.005, min_mse=0.0), Limits(max_linkage=1.0, min_mse=1.0)]
)
def test_each_limit_refuses_by_itself(limits: Limits) -> None:
    assert not judge(uniform(0.5), limits).accepted


def test_few_victims_make_a_wide_bound_however_often_they_are_attacked() -> None:
    found = judge(uniform(0.0), victims=SITE.subset(range(12)), others=joined(PUBLIC, PUBLIC))
    assert found.victims == 12
    assert found.linkage < 0.1, "of 300 attacks: chance"
    assert found.linkage_bound > 0.15, "of 12 victims: little is known"


def test_too_few_candidates_are_refused() -> None:
    with pytest.raises(DataError, match="at least 10 candidates"):
        judge(uniform(0.0), victims=SITE.subset(range(8)), others=PUBLIC.subset(range(4)))


def test_the_attacker_improves_on_each_single_method_and_on_guessing() -> None:
    channel = uniform(0.9)
    oracle = fit_oracle(channel, PUBLIC, 2, generator(1), QUICK)
    w, _ = channel.whiten(SITE.images, SITE.labels)
    views = channel.release_fresh(w, generator(2))
    result = oracle.attack(views, SITE)
    assert set(result.errors) == {"wiener", "latent", "picture"}
    assert result.relative_mse == min(result.errors.values()) == result.errors[result.method] < 0.9
    prior = class_means(PUBLIC.images, PUBLIC.labels, 2)[SITE.labels]
    expected = (result.reconstructions - SITE.images).square().mean()
    expected = expected / (prior - SITE.images).square().mean()
    assert float(expected) == pytest.approx(result.relative_mse, rel=1e-4)
