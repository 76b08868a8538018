"""Inversion of the batch statistics that BatchNorm buffers give away.

For small batches these, not the gradients, carry the picture. Withholding the buffers ends it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradward.attacks.budget import Allowance
from gradward.attacks.case import AttackCase, Start, check_start
from gradward.attacks.drift import Drift
from gradward.attacks.knowledge import Knowledge
from gradward.attacks.observation import AttackRefused
from gradward.attacks.search import Search
from gradward.attacks.search_space import search_space
from gradward.attacks.simulation import CallsDistance
from gradward.attacks.training_copy import StatisticsTap, training_copy, twice

# Share of the layers, in the order of the forward pass, and of the budget at the stage's end. Deep
# layers hold many false minima, and early ones alone leave details open: going from coarse to fine
# found on trained networks in 200 evaluations what all layers at once had not found in 600.
STAGES = ((0.5, 0.2), (0.75, 0.45), (1.0, 1.0))


@dataclass(frozen=True)
class BatchNormOptions:
    """How the statistics are inverted.

    Attributes:
        tv_weight: of the total variation.
        start: ``"prior"`` or ``"random"`` (uniform in [0, 1]); a learned prior has its own, the
            former.
        prior_noise: standard deviation of what tells apart the copies of the prior.
        learned_prior: weight of an :class:`~gradward.attacks.image_prior.ImagePrior` learned from
            public images, in place of total variation; 0 learns none. It pays where
            batches are larger than one, and blurs where the statistics tell everything.
        max_images: larger updates are refused.
        max_steps: longer local trainings are refused.
    """

    tv_weight: float = 1e-3
    start: Start = "prior"
    prior_noise: float = 0.02
    learned_prior: float = 0.0
    max_images: int = 32
    max_steps: int = 64

    def __post_init__(self) -> None:
        """Refuse what would silently mean something else."""
        check_start(self.start, self.learned_prior)

    def knowledge(self, case: AttackCase) -> Knowledge:
        """State what the attack builds on: neither labels nor the learning rate."""
        one_step = len(case.batches) == 1
        return Knowledge(
            labels="lacked",
            learning_rate="lacked",
            batch_size="lacked" if one_step else "given",
            batch_order=case.batch_order,
            prior="given" if self.start == "prior" else "lacked",
            local_steps="inferred" if case.observation.steps else "given",
            public_images="given" if self.learned_prior else "lacked",
        )

    def images_per_evaluation(self, case: AttackCase) -> int:
        """Return how many images one evaluation processes: a batch that repeats, once."""
        return sum(len(batch) for batch in {tuple(batch) for batch in case.batches})

    def run(self, case: AttackCase, allowance: Allowance, generator: torch.Generator) -> Search:
        """Invert from the start: early layers first, then more, then all.

        Args:
            case: whose observation has batch statistics.
            allowance: of this run, all stages together.
            generator: CPU generator of the start.

        Returns:
            The last stage's search, over all layers; its images ``(n_images, C, H, W)`` may lie
            outside [0, 1].

        Raises:
            AttackRefused: no batch statistics, a limit is exceeded, or too few public images for a
                learned prior.
            FloatingPointError: the loss is not finite at the start.
        """
        if not case.observation.has_batch_statistics:
            raise AttackRefused("the update gives no batch statistics away")
        case.limit(self.max_images, self.max_steps)
        space = search_space(case, self, generator, start=self.start)
        place = space.start
        for number, (layers, end) in enumerate(STAGES):
            part = allowance.until(end)
            loss = StatisticsLoss(case, layers)
            if number:
                loss.fit_drift(space.images(place), part)
            search, place = space.descend(loss, place, part)
        return search


class StatisticsLoss:
    """Distance of candidate images' batch statistics from the observed ones.

    Exact for one step. For more, the weights stay at the global state over the K batches, or drift
    from it as :meth:`fit_drift` finds.

    Args:
        case: whose observation has batch statistics.
        layers: share of the layers used, in the order of the forward pass.
    """

    def __init__(self, case: AttackCase, layers: float):
        self._batches = case.batches
        self._drift = Drift(case.observation, case.batches)
        self._model = training_copy(case.observation.model).requires_grad_(False)
        known = [layer.name for layer in case.observation.batch_statistics]
        with torch.no_grad(), StatisticsTap(self._model, known) as tap:
            calls = tap.forward(twice(case.prior))
        order = [name for name, _, _ in calls]
        distinct = list(dict.fromkeys(order))
        used = set(distinct[: math.ceil(layers * len(distinct))])
        observed = [layer for layer in case.observation.batch_statistics if layer.name in used]
        self._distance = CallsDistance(observed)
        # What lies behind the last layer used need not be computed.
        end = sum(name in used for name in order)
        self._tap = StatisticsTap(self._model, [layer.name for layer in observed], end)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the loss of ``images`` ``(n_images, C, H, W)``, a scalar."""
        with self._tap:
            seen = {
                batch: self._tap.forward(images[list(batch)], weights)
                for batch, weights in self._drift.weights.items()
            }
        calls = [call for batch in self._batches for call in seen[tuple(batch)]]
        return self._distance(calls)

    def fit_drift(self, images: Tensor, allowance: Allowance) -> None:
        """Let the weights drift along the update as far as suits ``images`` best.

        Args:
            images: ``(n_images, C, H, W)`` found so far.
            allowance: as of :meth:`Drift.fit`.
        """
        self._drift.fit(lambda: self(images), allowance)
