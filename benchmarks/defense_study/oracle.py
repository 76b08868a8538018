"""The attacker who holds what the site trained on, and can do the same to its own images."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from gradward.defenses.adversary import OracleSettings, fit_oracle
from gradward.defenses.seeding import seeded
from gradward.metrics.linkage import likelihood_linkage

from .defence import View
from .federation import Effort
from .networks import BATCH, Examples, ViewInverter, fit_inverter, held_out, shifted
from .perturbers import PerturbedView
from .protocol import Trial
from .scoring import Evidence, Scorer


def attack_view(trial: Trial, view: View, scorer: Scorer, effort: Effort) -> dict[str, Evidence]:
    """Attack the victims' exact perturbed pictures, the label known.

    Args:
        trial: whose victims.
        view: of the defence.
        scorer: of what it gets.
        effort: gives the training of the network.

    Returns:
        ``raw``: the perturbed picture as it is; ``network``: a fresh U-Net; of a channel whose
        latents are released also ``wiener`` and ``latent``, linked by likelihood.
    """
    generator = trial.generator("oracle")
    seen = view.released(trial.victims).clamp(0, 1)
    found = {"raw": scorer.score("x'", seen)}
    if torch.equal(seen, trial.victim_images.images):
        return found
    learn, check = held_out(trial.known, generator)

    def draw() -> Examples:
        chosen = torch.randint(len(learn), (BATCH,), generator=generator)
        images = shifted(learn.subset(chosen), generator)
        with torch.no_grad():
            imitation = view.imitate(images, generator)
        return Examples(imitation, trial.class_means[images.labels], images.images)

    with seeded(generator):
        network: nn.Module = ViewInverter(seen.shape[1])
    with torch.no_grad():
        checked = view.imitate(check, generator)
    fit_inverter(
        network,
        draw,
        Examples(checked, trial.class_means[check.labels], check.images),
        effort.network_steps,
    )
    guesses = trial.class_means[trial.victim_images.labels]
    pictures = network(seen, guesses).clamp(0, 1)
    found["network"] = scorer.score("network on x'", pictures)
    if isinstance(view, PerturbedView) and view.latents is not None:
        found |= _attack_latents(trial, view, view.latents[trial.victims], scorer, generator)
    return found


def _attack_latents(
    trial: Trial,
    view: PerturbedView,
    released: Tensor,
    scorer: Scorer,
    generator: torch.Generator,
) -> dict[str, Evidence]:
    """Attack the exact perturbed latents: Wiener filter and network, and likelihood linkage."""
    gallery, _ = view.channel.whiten(trial.pool.images, trial.pool.labels)
    linked = likelihood_linkage(released, gallery, view.channel.gate, trial.truths, trial.galleries)
    attackers = fit_oracle(
        view.channel, trial.known, trial.num_classes, generator, OracleSettings(picture_steps=0)
    )
    pictures = attackers.reconstructions(released, trial.victim_images.labels)
    return {
        name: scorer.score(f"{name} on w'", images.clamp(0, 1), linked=linked)
        for name, images in pictures.items()
    }


def guess_class(trial: Trial, scorer: Scorer) -> Evidence:
    """Return what the label alone gives: the mean of the class, and a candidate at random."""
    guesses = trial.class_means[trial.victim_images.labels]
    size = trial.galleries.shape[1]
    chance = torch.full((len(guesses),), 1 / size, dtype=torch.float64)
    return replace(scorer.score("class mean", guesses), linked=float(chance.sum()))
