"""Images read off the gradient of a first fully connected layer, in closed form.

Row j of its weight's gradient is ``sum_i slope_ij x_i`` and that of its bias ``sum_i slope_ij``: a
neuron that one image alone moved holds that image as their quotient (Phong et al., IEEE TIFS 2018;
Boenisch et al., *When the Curious Abandon Honesty*, EuroS&P 2023, for batches).
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradward.attacks.budget import Allowance
from gradward.attacks.case import AttackCase
from gradward.attacks.head import InputRecorder, layer_change, linear_calls, single_input
from gradward.attacks.knowledge import Knowledge
from gradward.attacks.observation import AttackRefused
from gradward.attacks.search import BudgetSpent, Search
from gradward.attacks.training_copy import training_copy, twice

# A bias that moved less than this share of the most moved one is mostly rounding.
_LEAST_MOVE = 1e-2
# A term smaller than this share of its row is rounding.
_LEAST_TERM = 1e-2
# Candidates looked at for each image.
_WIDEST = 8


@dataclass(frozen=True)
class AnalyticOptions:
    """How images are told apart in the rows of a batch's gradient.

    Attributes:
        tolerance: how far out of [0, 1] a candidate's pixels may lie, and how far apart, on
            average, the pixels of two candidates of the same image.
    """

    tolerance: float = 0.01

    def knowledge(self, case: AttackCase) -> Knowledge:
        """State what the attack builds on: nothing but the update, but for weight decay."""
        return Knowledge(
            labels="lacked",
            learning_rate="given" if case.settings.weight_decay else "lacked",
            batch_size="lacked",
            batch_order="lacked",
            prior="lacked",
            local_steps="lacked",
        )

    def images_per_evaluation(self, case: AttackCase) -> int:
        """Return how many images the one evaluation yields."""
        return case.n_images

    def run(self, case: AttackCase, allowance: Allowance, generator: torch.Generator) -> Search:
        """Divide rows, keep what can be an image, and put equal ones together.

        Args:
            case: of a network whose first layer is fully connected.
            allowance: one evaluation is counted.
            generator: not drawn from.

        Returns:
            A search whose images ``(k, C, H, W)`` are at most ``n_images``: those that most neurons
            agree on. Its loss is the share of the gradient's energy that they do not explain. For
            one image it is exact for any number of steps; for more, for one step.

        Raises:
            AttackRefused: another first layer, one without bias, not SGD, or no candidate.
        """
        name, scale, shift = first_linear(training_copy(case.observation.model), case.prior)
        change = layer_change(case.observation, case.settings, name)
        if len(change) < 2:
            raise AttackRefused(f"the first layer {name!r} has no bias that trains")
        weight, bias = (value.double() for value in change)
        if case.n_images == 1:
            inputs = single_input(weight, bias, "first layer")[None]
        else:
            inputs = self._candidates(weight, bias, scale, shift, case.n_images)
        images = ((inputs - shift) / scale).reshape(-1, *case.prior.shape)
        search = Search(allowance)
        with suppress(BudgetSpent):
            search.record(_unexplained(weight, inputs), images.to(case.prior))
        return search

    def _candidates(
        self, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, n_images: int
    ) -> Tensor:
        """Return ``(k, pixels)`` layer inputs, those first that most rows agree on."""
        moved = bias.abs() > _LEAST_MOVE * bias.abs().max()
        rows = weight[moved] / bias[moved, None]
        pixels = (rows - shift) / scale
        in_range = ((pixels >= -self.tolerance) & (pixels <= 1 + self.tolerance)).all(dim=1)
        rows, pixels = rows[in_range], pixels[in_range]
        if not len(rows):
            raise AttackRefused("no neuron of the first layer was moved by one image alone")
        # Where a bias moved more, the quotient has more digits.
        order = bias[moved][in_range].abs().argsort(descending=True)
        alike = torch.cdist(pixels, pixels) <= self.tolerance * pixels.shape[1] ** 0.5
        clusters: list[tuple[int, int]] = []
        free = torch.ones(len(rows), dtype=torch.bool)
        for index in order.tolist():
            if free[index]:
                members = alike[index].cpu() & free
                clusters.append((int(members.sum()), index))
                free &= ~members
        # The sort is stable: among equals the more exact one stays in front.
        clusters.sort(key=lambda cluster: -cluster[0])
        candidates = rows[[index for _, index in clusters[: _WIDEST * n_images]]]
        return candidates[_simplest(weight, candidates, n_images)]


def _simplest(weight: Tensor, candidates: Tensor, n_images: int) -> list[int]:
    """Choose those candidates by which the gradient's rows are told with the fewest terms.

    A row that several images moved can be in range too. But most neurons are moved by a few of the
    images only, so that in terms of the true ones most coefficients are zero.

    Args:
        weight: ``(rows, pixels)``, the gradient.
        candidates: ``(k, pixels)``, distinct, those first that most rows agree on.
        n_images: how many to choose.
    """
    if len(candidates) <= n_images:
        return list(range(len(candidates)))
    _, _, basis = torch.linalg.svd(weight, full_matrices=False)
    basis = basis[:n_images].T
    rows = F.normalize(weight @ basis, dim=1)
    points = F.normalize(candidates @ basis, dim=1)

    def terms(chosen: list[int]) -> float:
        inverse, singular = torch.linalg.inv_ex(points[chosen])
        if bool(singular):
            return math.inf
        return float(((rows @ inverse).abs() > _LEAST_TERM).sum())

    chosen = list(range(n_images))
    fewest = terms(chosen)
    gained = True
    while gained:
        gained = False
        for place in range(n_images):
            for other in set(range(len(points))) - set(chosen):
                trial = [*chosen[:place], other, *chosen[place + 1 :]]
                if (needed := terms(trial)) < fewest:
                    chosen, fewest, gained = trial, needed, True
    return chosen


def first_linear(model: nn.Module, image: Tensor) -> tuple[str, Tensor, Tensor]:
    """Return the linear layer that is fed with the picture itself, and how it is scaled there.

    Args:
        model: a :func:`training_copy`; it is hooked for good.
        image: ``(C, H, W)``, for its shape.

    Returns:
        Name, and ``scale`` and ``shift``, each ``(C*H*W,)`` float64 in the order of the flattened
        image, of ``input = scale * pixel + shift``.

    Raises:
        AttackRefused: what its first linear layer sees is not the flattened picture.
    """
    calls = linear_calls(model, image).outputs
    if not calls:
        raise AttackRefused("the model has no linear layer")
    linear, _ = calls[0]
    recorder = InputRecorder(model, linear)

    def seen(picture: Tensor) -> Tensor:
        with torch.no_grad():
            model(twice(picture))
        return recorder.input[0].double()

    zeros = torch.zeros_like(image)
    shift, probe = seen(zeros), torch.linspace(0, 1, image.numel()).reshape(image.shape).to(image)
    scale = seen(zeros + 1) - shift
    if shift.shape != (image.numel(),) or not torch.allclose(
        seen(probe), scale * probe.double().flatten() + shift, atol=1e-5
    ):
        raise AttackRefused(f"the first linear layer {linear!r} does not see the picture itself")
    if bool((scale == 0).any()):
        raise AttackRefused(f"the first linear layer {linear!r} does not see every pixel")
    return linear, scale, shift


def _unexplained(weight: Tensor, inputs: Tensor) -> Tensor:
    """Return the share of the gradient's energy outside the span of the images found."""
    basis = torch.linalg.qr(inputs.T).Q
    rest = weight - weight @ basis @ basis.T
    return rest.square().sum() / weight.square().sum()
