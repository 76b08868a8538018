"""What the attacks differentiate in closed form, or step by hand, is what torch does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gradward.attacks.budget import Allowance, Budget, Meter
from gradward.attacks.objectives import SMALL, CosineDistance
from gradward.attacks.search import descend_signed_adam
from gradward.attacks.training_batchnorm import TrainingBatchNorm


class Told(nn.Module):
    """A BatchNorm layer's output beside its batch statistics."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = TrainingBatchNorm(norm, "norm")

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.norm.normalise(values)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (1, 2, 3, 1), (5, 2)])
def test_batch_norm_and_its_statistics_have_the_slopes_of_finite_differences(
    shape: tuple[int, ...], affine: bool
) -> None:
    torch.manual_seed(0)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    told = Told(kind(2, affine=affine))

    def run(values: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        named = dict(zip(("norm.weight", "norm.bias"), parameters, strict=False))
        result: tuple[Tensor, Tensor, Tensor] = functional_call(told, named, (values,))
        return result

    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True)]
    inputs += [torch.rand(2, dtype=torch.float64, requires_grad=True) for _ in range(2 * affine)]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_the_angle_has_the_slope_that_torch_finds() -> None:
    torch.manual_seed(0)
    shapes = [(3, 4), (5,), (SMALL + 1,), (2, 2, 2, 2)]
    candidate, target = (
        [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
        for _ in range(2)
    )
    ours, theirs = (
        torch.cat([part.flatten() for part in update]) for update in (candidate, target)
    )
    truth = 1 - F.cosine_similarity(ours, theirs, dim=0)
    found = CosineDistance([part.detach() for part in target])(candidate)
    torch.testing.assert_close(found, truth)
    torch.testing.assert_close(
        torch.autograd.grad(3 * found, candidate), torch.autograd.grad(3 * truth, candidate)
    )


def test_the_angle_of_a_zero_update_has_a_finite_slope() -> None:
    nothing = torch.zeros(3, requires_grad=True)
    (slope,) = torch.autograd.grad(CosineDistance([torch.ones(3)])([nothing]), nothing)
    assert bool(slope.isfinite().all())


def test_signed_adam_is_torchs_adam_on_signs() -> None:
    aim = torch.linspace(-0.2, 1.2, 12).reshape(1, 3, 2, 2)
    start, evaluations, seen = 1 - aim, 30, []

    def loss(images: Tensor) -> Tensor:
        # The first row of pixels has no slope.
        value = (images - aim)[..., 1, :].square().sum()
        seen.append(float(value.detach()))
        return value

    descend_signed_adam(loss, start, 0.1, Allowance(Meter(Budget(evaluations=evaluations))))
    found = seen.copy()
    seen.clear()

    images = start.clamp(0, 1).requires_grad_()
    adam = torch.optim.Adam([images])
    for number in range(evaluations):
        along = (1 + math.cos(math.pi * number / evaluations)) / 2
        adam.param_groups[0]["lr"] = 0.1 * (0.01 + 0.99 * along)
        (slope,) = torch.autograd.grad(loss(images), images)
        images.grad = slope.sign()
        adam.step()
        images.data.clamp_(0, 1)
    assert found == seen
