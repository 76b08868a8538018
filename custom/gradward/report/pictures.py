"""Side-by-side pictures of what an attack rebuilt. They show patients and stay at the site."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from gradward.metrics.similarity import ssim

TILE = 160
GAP = 8
CAPTION = 16
MOST_ROWS = 8


def save_side_by_side(
    file: Path,
    *,
    truths: Tensor,
    prior: Tensor,
    reconstructions: Tensor,
    control: Tensor | None,
) -> None:
    """Write a PNG with a row an image: true image, prior, reconstruction, control.

    The best recovered images come first, at most eight.

    Args:
        file: where to write, readable by this user only.
        truths: ``(n, C, H, W)`` in [0, 1], matched to ``reconstructions`` one by one.
        prior: ``(C, H, W)``.
        reconstructions: ``(n, C, H, W)``.
        control: ``(n, C, H, W)``, matched to ``truths`` too, or None.
    """
    similarity = ssim(reconstructions, truths)
    rows = similarity.argsort(descending=True)[:MOST_ROWS].tolist()
    columns = [("true image", truths), ("prior", prior.expand_as(truths))]
    columns.append(("reconstruction", reconstructions))
    if control is not None:
        columns.append(("control", control))
    height, width = truths.shape[-2:]
    scale = max(1, TILE // max(height, width))
    tile_height, tile_width = height * scale, max(width * scale, 100)
    sheet = Image.new(
        "RGB",
        (
            GAP + len(columns) * (tile_width + GAP),
            GAP + CAPTION + len(rows) * (tile_height + CAPTION + GAP),
        ),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for column, (title, pictures) in enumerate(columns):
        left = GAP + column * (tile_width + GAP)
        draw.text((left, GAP // 2), title, fill="black")
        for row, index in enumerate(rows):
            top = GAP + CAPTION + row * (tile_height + CAPTION + GAP)
            picture = to_picture(pictures[index]).resize(
                (width * scale, height * scale), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (left, top))
            if column:
                score = float(ssim(pictures[index : index + 1], truths[index : index + 1]))
                draw.text((left, top + tile_height + 1), f"SSIM {score:.2f}", fill="black")
    _save(sheet, file)


def save_picture(file: Path, image: Tensor) -> None:
    """Write one picture ``(C, H, W)`` in [0, 1] as PNG, readable by this user only."""
    _save(to_picture(image), file)


def _save(picture: Image.Image, file: Path) -> None:
    file.touch(mode=0o600, exist_ok=True)
    picture.save(file, format="PNG")


def to_picture(image: Tensor) -> Image.Image:
    """Turn ``(C, H, W)`` in [0, 1] with one or three channels into an 8-bit RGB picture."""
    return from_bytes(eight_bits(image))


def from_bytes(picture: NDArray[np.uint8]) -> Image.Image:
    """Turn ``(C, H, W)`` uint8 with one or three channels into an RGB picture."""
    array = picture.transpose(1, 2, 0)
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).convert("RGB")


def eight_bits(images: Tensor) -> NDArray[np.uint8]:
    """Return images in [0, 1] of any shape as uint8."""
    return np.rint(images.detach().clamp(0, 1).cpu().numpy() * 255).astype(np.uint8)
