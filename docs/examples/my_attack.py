"""An attack of one's own: the squares of Deep Leakage from Gradients, descended by plain Adam."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch

from gradward.attacks import Knowledge
from gradward.attacks.budget import Allowance
from gradward.attacks.case import AttackCase
from gradward.attacks.objectives import RelativeDistance
from gradward.attacks.search import BudgetSpent, Search
from gradward.attacks.simulation import ClientSimulator


@dataclass(frozen=True)
class SquaresByAdam:
    """Options of the attack; each needs a number or a string as its default."""

    lr: float = 0.02
    prior_noise: float = 0.02
    max_images: int = 4

    def knowledge(self, case: AttackCase) -> Knowledge:
        """State for each fact whether it is given, inferred from the update, or lacked."""
        return Knowledge(
            labels="inferred",
            learning_rate="given",
            batch_size="given",
            batch_order=case.batch_order,
            prior="given",
            local_steps="inferred" if case.observation.steps else "given",
        )

    def images_per_evaluation(self, case: AttackCase) -> int:
        """Return how many images one evaluation processes, for budgets that count images."""
        return case.images_per_pass

    def run(self, case: AttackCase, allowance: Allowance, generator: torch.Generator) -> Search:
        """Search until the allowance is spent; refuse what the attack cannot be mounted on."""
        case.limit(self.max_images, max_steps=8)
        client = ClientSimulator(case.observation, case.settings)
        labels = case.known_labels()
        distance = RelativeDistance(list(case.observation.parameter_update.values()))
        images = case.copies_of_prior(self.prior_noise, generator).requires_grad_()
        adam, search = torch.optim.Adam([images], self.lr), Search(allowance)
        with suppress(BudgetSpent):
            while True:
                update = client.run(images, labels, case.batches)
                loss = distance(update.parameter_updates)
                (images.grad,) = torch.autograd.grad(loss, images)
                search.record(loss.detach(), images)
                adam.step()
        return search
