"""What a convolution's gradient tells of its input, by linear algebra.

The gradient of its weight is the sum over positions of slope times patch, so that with fewer
positions than channels its rows span the very patches of the input, or, in front of BatchNorm,
their differences. Patches overlap and end in zeros at the border: of one image a single map, up to
scale, has all its patches in that space. Rows of low rank are those of Dimitrov et al., *SPEAR*
(NeurIPS 2024), for linear layers, where several inputs stay mixed until their zeros part them; here
the overlaps do, or the network in front.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradward.attacks.budget import Allowance
from gradward.attacks.observation import AttackRefused
from gradward.attacks.training_copy import twice

# Of the conjugate gradients: slope over size at which they have converged, and a bound.
CONVERGED = 1e-7
MOST_ITERATIONS = 1000
# Share of where they began that is left where a map has its patches in the space.
LEAST_LEFT = 0.1


@dataclass(frozen=True)
class Rank:
    """Which directions of a gradient's rows count.

    Attributes:
        clear: a singular value that counts stands so many times out of the first one that must be
            noise.
        enough: share of the positions whose patches must be seen.
    """

    clear: float
    enough: float


@dataclass(frozen=True)
class Geometry:
    """How a convolution cuts its input ``(C, H, W)`` into ``positions`` patches of ``taps`` each.

    Attributes:
        shape: of the input.
        positions: of the kernel, the output's pixels.
        taps: pixels of the kernel.
        window: the kernel, as torch's ``unfold`` takes it.
    """

    shape: tuple[int, int, int]
    positions: int
    taps: int
    window: dict[str, tuple[int, int]]

    def cut(self, maps: Tensor) -> Tensor:
        """Return the patches ``(positions, C * taps)`` of ``(C, H, W)``."""
        return functional.unfold(maps[None], **self.window)[0].T

    def centred(self, maps: Tensor) -> Tensor:
        """Return the patches less their mean."""
        patches = self.cut(maps)
        return patches - patches.mean(0)

    def add_up(self, patches: Tensor) -> Tensor:
        """Return ``(C, H, W)``, each pixel the sum of its copies in the patches."""
        return functional.fold(patches.T[None], self.shape[1:], **self.window)[0]


def told_patches(
    geometry: Geometry, change: Tensor, rank: Rank, n_images: int = 1
) -> Tensor | None:
    """Return a basis ``(C * taps, rank)`` of all images' patches, or None if they are not told.

    Args:
        geometry: of the convolution.
        change: ``(K, C, h, w)``, a multiple of its weight's gradient, or a sum of such.
        rank: what counts.
        n_images: behind it, each once.
    """
    rows = change.flatten(1)
    patch, positions = rows.shape[1], n_images * geometry.positions
    # A basis that every patch fits in tells nothing, nor do fewer equations than unknowns.
    unknowns = n_images * (patch // geometry.taps) * _pixels(geometry)
    if positions * (patch - positions) <= unknowns or positions >= len(rows):
        return None
    _, sizes, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    # The patches fill no more directions than there are positions.
    seen = int((sizes[:positions] > rank.clear * sizes[positions]).sum())
    # Behind BatchNorm slopes add up to zero, which takes one; elsewhere more than one map fits.
    return basis[:seen].T.contiguous() if rank.enough * positions <= seen < positions else None


def _pixels(geometry: Geometry) -> int:
    return geometry.shape[1] * geometry.shape[2]


class PatchSpace:
    """The maps whose patches, less their mean, lie in a space.

    Args:
        geometry: of the patches.
        basis: ``(C * taps, rank)``, orthonormal, double precision.
    """

    def __init__(self, geometry: Geometry, basis: Tensor):
        self._geometry, self._basis = geometry, basis
        ones = torch.ones(geometry.shape[1:]).to(basis).expand(geometry.shape)
        # Pixels that no patch holds stay 0.
        self._copies = geometry.add_up(geometry.cut(ones)).clamp_min(1)
        # What a mean costs, were there only that: a square of taps, the same for each channel.
        channels = geometry.shape[0]
        costs = []
        for tap in range(geometry.taps):
            mean = torch.zeros(geometry.taps).to(basis)
            mean[tap] = 1
            costs.append(self._torn(mean.repeat(channels).expand(geometry.positions, -1)).sum(0))
        cost = torch.stack(costs)[:, : geometry.taps]
        # A stride can leave a tap whose mean costs nothing: no gradient tells it.
        self._by_cost = torch.linalg.pinv(cost, rtol=1e-9, hermitian=True)

    def nearest(self, maps: Tensor, allowance: Allowance) -> Tensor:
        """Return the centred patches of the map in the space that is nearest to ``maps``.

        As there is one up to scale, ``maps`` tells its sign and where to begin. What does not
        agree between overlapping patches is taken off by conjugate gradients.

        Args:
            maps: ``(C, H, W)``.
            allowance: at most what is left of it; evaluations are not counted.

        Returns:
            ``(positions, C * taps)``, of unknown scale.

        Raises:
            AttackRefused: no map has its patches in the space.
        """
        found = self._geometry.centred(maps.to(self._basis)) @ self._basis
        begun = found.norm()
        slope = self._disagreement(found)
        step, size = slope, slope.square().sum()
        for _ in range(MOST_ITERATIONS):
            if size.sqrt() <= CONVERGED * found.norm() or allowance.progress >= 1:
                break
            change = self._disagreement(step)
            rate = size / (step * change).sum()
            found, slope = found - rate * step, slope - rate * change
            size, before = slope.square().sum(), size
            step = slope + size / before * step
        if not bool(found.norm() > LEAST_LEFT * begun):
            raise AttackRefused("no map has the patches that the convolution's gradient tells")
        return found @ self._basis.T

    def _disagreement(self, coordinates: Tensor) -> Tensor:
        """Apply the quadratic form of what overlaps disagree on, once the mean suits best."""
        patches = coordinates @ self._basis.T
        torn = self._torn(patches).sum(0).reshape(-1, self._geometry.taps)
        patches = patches - (torn @ self._by_cost).flatten()
        slope = self._torn(patches) @ self._basis
        return slope - slope.mean(0)

    def _torn(self, patches: Tensor) -> Tensor:
        """Return the patches less those of the one map that comes nearest to them."""
        return patches - self._geometry.cut(self._geometry.add_up(patches) / self._copies)


def geometries(model: nn.Module, image: Tensor) -> dict[str, Geometry]:
    """Return those convolutions, in the order of the forward pass, whose patches overlap.

    Args:
        model: of which each layer is run at most once.
        image: ``(C, H, W)``.
    """
    found: dict[str, Geometry] = {}

    def look(name: str, layer: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        if layer.groups > 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return
        if any(side <= step for side, step in zip(layer.kernel_size, layer.stride, strict=True)):
            return
        window: dict[str, tuple[int, int]] = {
            "kernel_size": layer.kernel_size,  # type: ignore[dict-item]
            "stride": layer.stride,  # type: ignore[dict-item]
            "padding": layer.padding,  # type: ignore[dict-item]
            "dilation": layer.dilation,  # type: ignore[dict-item]
        }
        _, *shape = inputs[0].shape
        positions, taps = output[0, 0].numel(), layer.weight[0, 0].numel()
        found[name] = Geometry((shape[0], shape[1], shape[2]), positions, taps, window)

    hooks = [
        layer.register_forward_hook(partial(look, name))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.no_grad():
        model(twice(image))
    for hook in hooks:
        hook.remove()
    return found
