"""DICOM pixels as a radiologist sees them, and nothing else of the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.data import PydicomReader
from numpy.typing import NDArray
from pydicom.pixels import apply_modality_lut

from gradward.data.images import DataError

Pixels = NDArray[np.float32]


class DicomReader(PydicomReader):
    """MONAI's DICOM reader with the display pipeline of PS3.4 N.2 and without the header.

    Stored values -> modality LUT or rescale -> VOI LUT or window -> MONOCHROME1 inverted, in
    [0, 1]. MONAI's own `get_data` stops after the rescale, transposes, and hands the header on.

    Args:
        frame: which frame of a multi-frame file; the middle one by default.
    """

    def __init__(self, frame: int | None = None) -> None:
        super().__init__()
        self._frame = frame

    def get_data(self, data: Any) -> tuple[Pixels, dict[str, Any]]:
        """Return the displayed image ``(H, W)`` or ``(H, W, 3)`` and no metadata."""
        stored = data.pixel_array
        colour = data.get("SamplesPerPixel", 1) == 3
        if stored.ndim == (4 if colour else 3):
            stored = stored[pick(self._frame, len(stored), "frame")]
        kind = data.PhotometricInterpretation
        if colour:
            return (stored / (2.0**data.BitsStored - 1)).astype(np.float32), {}
        if kind not in ("MONOCHROME1", "MONOCHROME2"):
            raise DataError("has a photometric interpretation other than monochrome, RGB or YBR")
        shown = np.clip(_shown(stored, data), 0, 1)
        return (1 - shown if kind == "MONOCHROME1" else shown).astype(np.float32), {}


def pick(index: int | None, count: int, what: str) -> int:
    """Return ``index``, or the middle one of ``count``.

    Raises:
        DataError: there is no such slice, frame or volume.
    """
    if index is None:
        return count // 2
    if not 0 <= index < count:
        raise DataError(f"has {count} {what}s, so there is no {what} {index} (counted from 0)")
    return index


def _shown(stored: NDArray[Any], header: Any) -> NDArray[Any]:
    """Map stored values to [0, 1] or beyond by what the header says about display."""
    values = apply_modality_lut(stored, header)
    if header.get("VOILUTSequence"):
        return _voi_lut(values, header.VOILUTSequence[0])
    if header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        function = str(header.get("VOILUTFunction") or "LINEAR").upper()
        return _window(
            values, _first(header.WindowCenter), _first(header.WindowWidth), function=function
        )
    # Padding says where there is no image; it must not set the scale.
    padding = header.get("PixelPaddingValue")
    image = values if padding is None else values[stored != padding]
    low, high = (image.min(), image.max()) if image.size else (0, 0)
    return (values - low) / (high - low) if high > low else np.zeros(values.shape)


def _first(value: Any) -> float:
    """Return a header number, the first where there are several (the default view)."""
    return float(value[0] if isinstance(value, Sequence) else value)


def _window(values: NDArray[Any], center: float, width: float, *, function: str) -> NDArray[Any]:
    """Window to [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    pydicom's `apply_windowing` maps to the range of the stored values, which differs by file.
    """
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width < 0:
        raise DataError("has a window that DICOM does not allow")
    if width == 0:
        return (values > center).astype(np.float64)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    return (values - center) / width + 0.5


def _voi_lut(values: NDArray[Any], item: Any) -> NDArray[Any]:
    """Look values up in a VOI LUT (PS3.3 C.11.2.1.1), scaled by its nominal depth."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    table = table[: entries or 2**16]
    # Rescaled values are floats; below and above the table its ends hold.
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return table[index] / (2.0**bits - 1)
