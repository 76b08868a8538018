"""One image file to one tensor, by MONAI's `LoadImage`, pixels only and the right way round."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import NibabelReader, PILReader
from monai.transforms import LoadImage
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom.misc import is_dicom
from torch import Tensor

from gradward.data.dicom import DicomReader, Pixels, pick
from gradward.data.images import DataError

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
_DICOM = (".dcm", ".dicom", ".ima")
_NIFTI = (".nii", ".nii.gz")
# These name files or header values in what they log.
_TALKERS = ("pydicom", "nibabel", "nibabel.global", "monai.data.nvimgcodec_pydicom_plugin")
# Simulated sites read in threads of one process; the silence below is the process's.
_SILENCE = threading.Lock()


class PictureReader(PILReader):
    """MONAI's picture reader, rows first, 8 and 16 bit in [0, 1], turned as EXIF says."""

    def get_data(self, img: Any) -> tuple[Pixels, dict[str, Any]]:
        """Return ``(H, W)`` or ``(H, W, 3)`` in [0, 1] and no metadata; alpha is dropped."""
        # The file is shut even where it is damaged: a late warning would name it.
        with img:
            picture: Image.Image = ImageOps.exif_transpose(img)
        if picture.mode.startswith("I"):
            return np.clip(np.asarray(picture) / 65535.0, 0, 1).astype(np.float32), {}
        if picture.mode == "F":
            raise DataError("holds floating-point pixels without a known range")
        grey = picture.mode in ("L", "LA", "1")
        pixels = np.asarray(picture.convert("L" if grey else "RGB"))
        return (pixels / 255.0).astype(np.float32), {}


class VolumeReader(NibabelReader):
    """MONAI's NIfTI reader, one axial slice as a DICOM viewer shows it.

    The volume is brought to the closest canonical orientation (RAS+) and scaled by its 1st and
    99th percentile; the slice has anterior at the top and the patient's right on the left.

    Args:
        index: which slice, from the feet up; the middle one by default.
        volume: which volume of a series; the first by default.
    """

    def __init__(self, index: int | None = None, volume: int | None = None) -> None:
        super().__init__()
        self._index = index
        self._volume = volume or 0

    def get_data(self, img: Any) -> tuple[Pixels, dict[str, Any]]:
        """Return the slice ``(H, W)`` in [0, 1] and no metadata."""
        canonical = nibabel.as_closest_canonical(img)
        if len(canonical.shape) not in (2, 3, 4):
            raise DataError(f"has {len(canonical.shape)} axes, not 2, 3 or 4")
        shape = canonical.shape + (1,) * (4 - len(canonical.shape))
        series: NDArray[Any] = np.asarray(canonical.dataobj, dtype=np.float32).reshape(shape)
        data = series[..., pick(self._volume, shape[3], "volume")]
        if not np.isfinite(data).all():
            raise DataError("holds values that are not finite")
        low, high = np.percentile(data, (1, 99))
        if high <= low:
            low, high = data.min(), data.max()
        plane = data[:, :, pick(self._index, data.shape[2], "slice")]
        plane = np.clip((plane - low) / max(float(high - low), 1e-12), 0, 1)
        return np.ascontiguousarray(plane[::-1, ::-1].T, dtype=np.float32), {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries silent: their warnings name files, and NVFlare streams logs."""
    loggers = [logging.getLogger(name) for name in _TALKERS]
    with _SILENCE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        states = [logger.disabled for logger in loggers]
        for logger in loggers:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, state in zip(loggers, states, strict=True):
                logger.disabled = state


@lru_cache(maxsize=1)
def _loader() -> LoadImage:
    return LoadImage(image_only=True, ensure_channel_first=False)


def _reader_for(path: Path, index: int | None, volume: int | None) -> Any:
    name = path.name.lower()
    if name.endswith(_PICTURES):
        return PictureReader()
    if name.endswith(_NIFTI):
        return VolumeReader(index, volume)
    if name.endswith(_DICOM) or is_dicom(path):
        return DicomReader(index)
    raise DataError("is not PNG, JPEG, BMP, DICOM or NIfTI")


def read_image(path: Path, *, index: int | None = None, volume: int | None = None) -> Tensor:
    """Read one image.

    Args:
        path: a PNG, JPEG, BMP, DICOM or NIfTI file.
        index: slice of a NIfTI volume or frame of a DICOM file; the middle one by default.
        volume: volume of a NIfTI series; the first by default.

    Returns:
        ``(C, H, W)`` float32 in [0, 1], C 1 or 3, rows from top to bottom.

    Raises:
        DataError: it cannot be read. The message says what is wrong as the rest of a sentence
            ("is missing", "cannot be read as an image") and names no file.
    """
    try:
        if not path.is_file():
            raise DataError("is missing")
        with _quiet():
            image = _loader()(path, reader=_reader_for(path, index, volume))
    except DataError:
        raise
    except Exception:
        # The readers raise anything from OSError to struct.error, mostly with the file's name.
        raise DataError("cannot be read as an image") from None
    pixels = torch.as_tensor(np.asarray(image))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    if not torch.isfinite(pixels).all():
        raise DataError("holds values that are not finite")
    return pixels.contiguous()
