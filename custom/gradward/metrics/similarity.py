"""How alike two pictures are, pixel by pixel and in structure."""

from __future__ import annotations

import torch
from monai.metrics.regression import compute_ssim_and_cs
from torch import Tensor

PSNR_CAP = 100.0
WINDOW = 11
SIGMA = 1.5
# Pixels of one chunk of pairs: five filtered copies of 2^22 float32 values are 84 MB.
_CHUNK = 2**22


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of each pair, over channels and pixels.

    Args:
        x, y: ``(N, C, H, W)`` floating point in [0, 1].

    Returns:
        ``(N,)`` in [0, 1], float64; 0 for identical pictures.

    Raises:
        ValueError: shapes differ, or values are not finite or leave [0, 1].
    """
    _check_pair(x, y)
    return (x.double() - y.double()).square().flatten(1).mean(1)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, ``-10 log10(mse)``, for a peak of 1.

    Args:
        x, y: ``(N, C, H, W)`` floating point in [0, 1].

    Returns:
        ``(N,)`` in dB, float64, from 0 to 100; the cap keeps identical pictures finite.

    Raises:
        ValueError: as :func:`mse`.
    """
    return -10 * torch.log10(mse(x, y).clamp_min(10 ** (-PSNR_CAP / 10)))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each pair (Wang et al. 2004), by MONAI.

    Gaussian window of 11 pixels with sigma 1.5, data range 1, K1 = .01, K2 = .03, population
    moments, no padding (the mean is over the windows that lie inside the picture), then the mean
    over channels. Where a side is shorter than 11 pixels the window shrinks to the longest odd
    length that fits; such values do not compare with those of larger pictures.

    Args:
        x, y: ``(N, C, H, W)`` floating point in [0, 1], at least 3 pixels a side.

    Returns:
        ``(N,)`` in [-1, 1], float32; 1 for identical pictures.

    Raises:
        ValueError: shapes differ, or values are not finite or leave [0, 1], or a side is too short.
    """
    _check_pair(x, y)
    return _ssim(x, y)


def ssim_matrix(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of every picture of ``a`` with every picture of ``b``, in chunks that bound the memory.

    Args:
        a: ``(n, C, H, W)`` floating point in [0, 1].
        b: ``(m, C, H, W)``, likewise.

    Returns:
        ``(n, m)`` in [-1, 1], float32.

    Raises:
        ValueError: as :func:`ssim`.
    """
    check_images(a)
    check_images(b)
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"pictures differ in shape: {tuple(a.shape)} and {tuple(b.shape)}")
    pairs = torch.cartesian_prod(torch.arange(len(a)), torch.arange(len(b))).reshape(-1, 2)
    chunks = pairs.split(max(1, _CHUNK // a[0].numel())) if len(pairs) else ()
    values = [_ssim(a[chunk[:, 0]], b[chunk[:, 1]]) for chunk in chunks]
    return torch.cat([a.new_zeros(0, dtype=torch.float32), *values]).reshape(len(a), len(b))


def check_images(images: Tensor) -> None:
    """Refuse what is not a batch ``(N, C, H, W)`` of finite values in [0, 1].

    Raises:
        ValueError: with the shape or the type; never with a pixel's value.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images must be floating point (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    # Written so that NaN, which compares as false, is refused as well.
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError("images must be finite and lie in [0, 1]")


def _check_pair(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape:
        raise ValueError(f"pictures differ in shape: {tuple(x.shape)} and {tuple(y.shape)}")
    check_images(x)
    check_images(y)


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    shortest = min(x.shape[2:])
    if shortest < 3:
        raise ValueError(f"SSIM needs at least 3 pixels a side, got {tuple(x.shape[2:])}")
    window = min(WINDOW, shortest - (shortest + 1) % 2)
    values, _ = compute_ssim_and_cs(
        y_pred=x,
        y=y,
        spatial_dims=2,
        kernel_size=(window, window),
        kernel_sigma=(SIGMA, SIGMA),
        data_range=1.0,
    )
    mean: Tensor = values.flatten(1).mean(1)
    return mean
