"""A folder of image files without labels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gradward.data.form import ImageForm
from gradward.data.images import DataError
from gradward.data.readers import read_image


def read_folder(folder: Path, form: ImageForm, what: str) -> Tensor:
    """Read all images of a folder, in the order of the files' names.

    Args:
        folder: of PNG, JPEG, BMP, DICOM or NIfTI files; hidden files and folders are passed over.
        form: that they are brought to.
        what: the folder holds, for messages, such as ``"--truth"``.

    Returns:
        ``(N, C, H, W)`` float32 in [0, 1].

    Raises:
        DataError: no folder, no files, or one that is no image; it is told by its place in the
            order of names.
    """
    if not folder.is_dir():
        raise DataError(f"the folder of {what} does not exist; correct {what}")
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    if not files:
        raise DataError(f"the folder of {what} holds no image files")
    images = []
    for number, file in enumerate(files, start=1):
        try:
            images.append(form.fit(read_image(file)[None]))
        except DataError as error:
            raise DataError(
                f"file {number} of {len(files)} of {what}, in the order of their names, {error}; "
                "the folder must hold images alone"
            ) from None
    return torch.cat(images)
