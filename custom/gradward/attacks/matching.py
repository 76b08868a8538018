"""Gradient inversion: candidate images whose simulated local training gives the same update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gradward.attacks.budget import Allowance
from gradward.attacks.case import AttackCase, Start, check_start
from gradward.attacks.features import FeatureOptions, HeadLoss
from gradward.attacks.knowledge import Knowledge
from gradward.attacks.objectives import (
    CosineDistance,
    RelativeDistance,
    StatisticsDistance,
    total_variation,
)
from gradward.attacks.observation import AttackRefused
from gradward.attacks.search import Search, descend_lbfgs, descend_signed_adam
from gradward.attacks.search_space import PixelSpace
from gradward.attacks.simulation import ClientSimulator
from gradward.attacks.training_batchnorm import TrainingBatchNorm
from gradward.attacks.training_copy import layer_without_second_derivative, training_copy

# Share of exact zeros that only a kink leaves behind.
MANY_ZEROS = 0.01


@dataclass(frozen=True)
class MatchingOptions:
    """How the update is matched (Geiping et al., *Inverting Gradients*, NeurIPS 2020, unrolled).

    Attributes:
        distance: ``"cosine"``, descended by signed Adam; ``"relative"``, squares descended by
            L-BFGS in double precision (Zhu et al., *Deep Leakage from Gradients*, NeurIPS 2019,
            who use single), which is far more exact where the network is smooth; or ``"auto"``,
            which takes the latter for networks without batch statistics and kinks.
        tv_weight: of the total variation beside the angle.
        relative_tv_weight: beside relative squares. What is left of these at the true image is the
            rounding of a single precision update, about 1e-8.
        bn_weight: of the batch statistics' distance, where the update gives them away.
        lr: of the signed Adam at its start.
        start: ``"prior"`` or ``"random"`` (uniform in [0, 1]).
        prior_noise: standard deviation of what tells apart the copies of the prior.
        polish: share of the budget for a second stage, which inverts the last layer's gradient
            (:class:`HeadLoss`) from where the first one ended; it is left out where the update
            does not give it away or it tells too little of several images, and behind
            ``"relative"``.
        max_images: larger updates are refused.
        max_steps: longer local trainings are refused; memory and time grow with them.
    """

    distance: Literal["auto", "cosine", "relative"] = "auto"
    tv_weight: float = 0.1
    relative_tv_weight: float = 3e-6
    bn_weight: float = 0.3
    lr: float = 0.1
    start: Start = "prior"
    prior_noise: float = 0.02
    polish: float = 0.5
    max_images: int = 32
    max_steps: int = 8

    def __post_init__(self) -> None:
        """Refuse what would silently mean something else."""
        if self.distance not in ("auto", "cosine", "relative"):
            raise ValueError(
                f"distance must be 'auto', 'cosine' or 'relative', got {self.distance!r}"
            )
        check_start(self.start)
        if not 0 <= self.polish < 1:
            raise ValueError(f"polish must lie in [0, 1), got {self.polish!r}")

    def knowledge(self, case: AttackCase) -> Knowledge:
        """State what the attack builds on; labels are the case's, which knows their source."""
        return Knowledge(
            labels="inferred",
            learning_rate="given",
            batch_size="given",
            batch_order=case.batch_order,
            prior="given" if self.start == "prior" else "lacked",
            local_steps="inferred" if case.observation.steps else "given",
        )

    def images_per_evaluation(self, case: AttackCase) -> int:
        """Return how many images one evaluation processes: those of all local steps."""
        return case.images_per_pass

    def run(self, case: AttackCase, allowance: Allowance, generator: torch.Generator) -> Search:
        """Match the update, then polish what came out.

        Args:
            case: with labels.
            allowance: of this run.
            generator: CPU generator of the start.

        Returns:
            The search, whose images ``(n_images, C, H, W)`` may lie outside [0, 1]. Its loss is
            the matching loss also after polishing, so that it tells the better stage.

        Raises:
            AttackRefused: the client cannot be simulated, no labels, or a limit is exceeded.
            FloatingPointError: the loss is not finite at the start.
        """
        case.limit(self.max_images, self.max_steps)
        _refuse_single_derivatives(case)
        start = case.starting_images(self.start, self.prior_noise, generator)
        if self.distance == "relative" or (self.distance == "auto" and is_smooth(case)):
            exact = MatchingLoss(case.double(), self)
            return descend_lbfgs(exact.relative, start.double(), allowance)
        loss = MatchingLoss(case, self)
        polishing = self._polishing(case)
        first = allowance.until(1 - self.polish) if polishing else allowance
        search = descend_signed_adam(loss.cosine, start, self.lr, first)
        if polishing and search.images is not None:
            # One evaluation is kept for the comparison of both stages.
            allowance.meter.reserved = 1
            # On a trained network the angle of noise can be less than the prior's, and from noise
            # the second stage finds no way back.
            begin = _nearest(polishing, (search.images, start), allowance)
            space = PixelSpace(begin, FeatureOptions.tv_weight)
            polished = space.descend(polishing, begin, allowance)[0]
            allowance.meter.reserved = 0
            search.consider(polished.images, loss.cosine)
        return search

    def _polishing(self, case: AttackCase) -> HeadLoss | None:
        """Return the second stage's loss where it has a say."""
        if not self.polish:
            return None
        try:
            loss = HeadLoss(case, FeatureOptions(max_steps=self.max_steps))
        except AttackRefused:
            return None
        return loss if case.n_images == 1 or loss.determines_images else None


class MatchingLoss:
    """Distances of candidate images' simulated update from the observed one.

    Args:
        case: what was observed, with labels.
        options: whose weights are used.

    Raises:
        AttackRefused: the client cannot be simulated, or no labels.
    """

    def __init__(self, case: AttackCase, options: MatchingOptions):
        # Before the labels, which help nothing where there is no simulation.
        self._simulator = ClientSimulator(case.observation, case.settings)
        self._labels = case.known_labels()
        self._batches = case.batches
        self._options = options
        target = list(case.observation.parameter_update.values())
        self._angle, self._relative = CosineDistance(target), RelativeDistance(target)
        layers = case.observation.batch_statistics
        observed = [(layer.mean, layer.var) for layer in layers]
        self._statistics = StatisticsDistance(observed) if observed else None

    def cosine(self, images: Tensor) -> Tensor:
        """Return angle, batch statistics and smoothness, a scalar."""
        return self._value(images, self._angle, self._options.tv_weight)

    def relative(self, images: Tensor) -> Tensor:
        """Return relative squares, batch statistics and smoothness, a scalar."""
        return self._value(images, self._relative, self._options.relative_tv_weight)

    def _value(
        self, images: Tensor, distance: CosineDistance | RelativeDistance, tv_weight: float
    ) -> Tensor:
        update = self._simulator.run(images, self._labels, self._batches)
        value = distance(update.parameter_updates) + tv_weight * total_variation(images)
        if self._statistics:
            value = value + self._options.bn_weight * self._statistics(update.batch_statistics)
        return value


def _nearest(loss: HeadLoss, candidates: Sequence[Tensor], allowance: Allowance) -> Tensor:
    """Return the candidate of least loss; each costs an evaluation."""

    def counted(images: Tensor) -> float:
        allowance.meter.count()
        with torch.no_grad():
            return float(loss(images))

    return min(candidates, key=counted)


def _refuse_single_derivatives(case: AttackCase) -> None:
    batch = case.prior.expand(len(case.batches[0]), *case.prior.shape)
    layer = layer_without_second_derivative(training_copy(case.observation.model), batch)
    if layer is not None:
        raise AttackRefused(
            f"layer {layer} has no second derivative, so that no gradient can be matched"
        )


def is_smooth(case: AttackCase) -> bool:
    """Whether L-BFGS can match gradients of this network.

    It fails behind batch statistics, and behind kinks, where gradients jump: a ReLU shows itself
    by exact zeros in what a layer hands on, whatever it is called.
    """
    model = training_copy(case.observation.model)
    if any(isinstance(module, TrainingBatchNorm) for module in model.modules()):
        return False
    zeros: list[bool] = []

    def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        zeros.append(bool((inputs[0] == 0).float().mean() > MANY_ZEROS))

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        model(torch.rand_like(case.prior)[None])
    return not any(zeros)
