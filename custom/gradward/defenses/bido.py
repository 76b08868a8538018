"""BiDO: hidden outputs that depend little on the image and much on the label.

Bilateral Dependency Optimization, Peng et al. 2022 (arXiv 2206.05483), in its HSIC variant. The
loss is ``CE + sum_j [lambda_x * HSIC(x, z_j) - lambda_y * HSIC(z_j, y)]`` over hidden outputs z_j.
HSIC is estimated as in the authors' published code, normalised by the kernels' own size (nHSIC, a
kernel canonical correlation): with kernels this wide the plain estimate lies around 1e-5, where no
published weight would do anything.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from gradward.hooks import HookContext
from gradward.training_settings import BidoSettings

# Of the Gaussian kernels: sigma = 5 sqrt(d) for d-dimensional vectors; and the ridge that is added
# per sample before a kernel matrix is inverted. Both as published.
KERNEL_WIDTH = 5.0
RIDGE = 1e-5


def gaussian_kernel(values: Tensor) -> Tensor:
    """Return ``exp(-|v_i - v_j|^2 / (2 sigma^2))`` with ``sigma = 5 sqrt(d)``.

    Args:
        values: ``(B, ...)``, flattened to ``(B, d)``.

    Returns:
        ``(B, B)`` float64.
    """
    flat = values.flatten(1).double()
    # Written out: the gradient of torch.cdist is undefined where two rows are the same.
    squares = (flat * flat).sum(1)
    distances = (squares[:, None] + squares[None] - 2 * flat @ flat.T).clamp_min(0)
    return torch.exp(-distances / (2 * KERNEL_WIDTH**2 * flat.shape[1]))


def label_kernel(labels: Tensor) -> Tensor:
    """Return the linear kernel of one-hot labels ``(B,)``: 1 where two are equal; float64."""
    return (labels[:, None] == labels[None]).double()


def normalised_hsic(kernel: Tensor, other: Tensor) -> Tensor:
    """Return ``tr(R S)`` with ``R = K_c (K_c + e B I)^-1`` and S alike, K_c the centred kernel.

    Args:
        kernel, other: ``(B, B)`` kernel matrices of the same images.

    Returns:
        Scalar from 0, independent, to B - 1.
    """
    size = len(kernel)
    identity = torch.eye(size, dtype=kernel.dtype, device=kernel.device)
    centre = identity - 1 / size

    def share(matrix: Tensor) -> Tensor:
        centred = centre @ matrix @ centre
        # K_c and (K_c + ridge) commute: solving from the left gives the same product.
        return torch.linalg.solve(centred + RIDGE * size * identity, centred)

    return (share(kernel) * share(other).T).sum()


class BidoLoss(HookContext):
    """The loss above, as a context in which the hidden outputs are recorded.

    Args:
        model: its layers are hooked while the context is open.
        settings: layers and weights.

    Raises:
        ValueError: the model has no layer of such a name.
    """

    def __init__(self, model: nn.Module, settings: BidoSettings) -> None:
        layers = dict(model.named_modules())
        unknown = [name for name in settings.hidden_layers if name not in layers]
        if unknown:
            raise ValueError(
                f"bido: the model has no layers {unknown}; it has {sorted(filter(None, layers))}"
            )
        self.model = model
        self.settings = settings
        self._layers = [layers[name] for name in settings.hidden_layers]
        self._hidden: list[Tensor] = []

    def hook(self) -> list[RemovableHandle]:
        """Hook the hidden layers."""
        return [layer.register_forward_hook(self._record) for layer in self._layers]

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of ``(B, C, H, W)`` images and ``(B,)`` labels; CE alone for B = 1."""
        self._hidden.clear()
        loss = F.cross_entropy(self.model(images), labels)
        of_images, of_labels = gaussian_kernel(images), label_kernel(labels)
        for hidden in self._hidden:
            kernel = gaussian_kernel(hidden)
            to_images = normalised_hsic(of_images, kernel)
            to_labels = normalised_hsic(kernel, of_labels)
            dependence = self.settings.lambda_x * to_images - self.settings.lambda_y * to_labels
            loss = loss + dependence.to(loss.dtype)
        return loss

    def _record(self, _layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._hidden.append(output)
