"""Folders of image files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gradward.data.form import ImageForm
from gradward.data.images import DataError, ImageSet, unlabelled
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
        raise DataError(f"the folder of {what} holds no image files; correct {what}")
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


def read_public_folder(folder: Path, form: ImageForm, classes: int, what: str) -> ImageSet:
    """Read images from sub-folders ``0``, ``1``, ... named by their class, or from one folder.

    Args:
        folder: as of :func:`read_folder`, or holding such folders.
        form: that they are brought to.
        classes: how many there are.
        what: the folder holds, for messages.

    Returns:
        The images, unlabelled if the folder has no sub-folders.

    Raises:
        DataError: as :func:`read_folder`, or a sub-folder that is named for no class.
    """
    inside = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    of_classes = [part for part in inside if not part.name.startswith(".")]
    if not of_classes:
        return unlabelled(read_folder(folder, form, what))
    names = [str(label) for label in range(classes)]
    if any(part.name not in names for part in of_classes):
        raise DataError(
            f"the folders in that of {what} must be named by their class, 0 to {classes - 1}"
        )
    sets = [read_folder(part, form, f"class {part.name} of {what}") for part in of_classes]
    labels = [
        torch.full((len(images),), int(part.name))
        for part, images in zip(of_classes, sets, strict=True)
    ]
    return ImageSet(torch.cat(sets), torch.cat(labels))
