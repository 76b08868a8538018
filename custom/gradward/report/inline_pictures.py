"""Pictures that are part of a page, as data URIs: the page needs no other file and no network."""

from __future__ import annotations

import base64
import io

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gradward.report.pictures import from_bytes

# Of the range of values: where a difference map is at its brightest.
BRIGHTEST = 0.5


def inline(picture: NDArray[np.uint8]) -> str:
    """Return ``(C, H, W)`` uint8 with one or three channels as a PNG in a data URI."""
    return _uri(from_bytes(picture))


def inline_difference(picture: NDArray[np.uint8], truth: NDArray[np.uint8]) -> tuple[str, float]:
    """Show where two pictures differ.

    Args:
        picture, truth: ``(C, H, W)`` uint8.

    Returns:
        A PNG in a data URI, black where they are equal and brightest from :data:`BRIGHTEST` on;
        and the mean absolute difference, in [0, 1].
    """
    difference = np.abs(picture.astype(float) - truth.astype(float)).mean(0) / 255
    colours = mpl.colormaps["inferno"](np.clip(difference / BRIGHTEST, 0, 1), bytes=True)
    return _uri(Image.fromarray(colours[..., :3])), float(difference.mean())


def _uri(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
