"""A site's images by what its settings say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gradward.data.datalist import DatalistSource
from gradward.data.embedded import EmbeddedSource
from gradward.data.form import ImageForm
from gradward.data.images import DataError, ImageSet
from gradward.data.npz import NpzSource
from gradward.data.parts import PublicParts

SPLITS = ("training", "validation", "testing")


class Source(Protocol):
    """Where images come from."""

    def split(self, split: str, site: str, form: ImageForm) -> ImageSet:
        """Return one of `SPLITS` of a site."""

    def public(self, form: ImageForm) -> PublicParts:
        """Return the public images."""


_FORMATS: Mapping[str, Callable[[Mapping[str, Any], str], Source]] = {
    "embedded": EmbeddedSource,
    "npz": NpzSource,
    "datalist": DatalistSource,
}


def open_source(spec: Mapping[str, Any], name: str) -> Source:
    """Return the source a spec describes.

    Args:
        spec: ``{"format": "embedded" | "npz" | "datalist", ...}``; see the sources for the rest.
        name: the data set's name, for messages.

    Raises:
        DataError: unknown format or settings, or missing files.
    """
    kind = spec.get("format") if isinstance(spec, Mapping) else None
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise DataError(
            f"'format' of data set '{name}' must be one of {', '.join(_FORMATS)}, got {kind!r}"
        )
    return _FORMATS[kind](spec, name)


def load_split(
    spec: Mapping[str, Any],
    split: str,
    *,
    site: str,
    image_size: tuple[int, int],
    channels: int,
) -> ImageSet:
    """Load one split of a site's data.

    Args:
        spec: where the data is, see `dataset_spec`; its ``name`` is used in messages.
        split: ``training``, ``validation`` or ``testing``.
        site: the site's name; it decides which training images it gets.
        image_size: height and width to resize to, pixels.
        channels: 1 or 3; grey and RGB are converted into each other.

    Returns:
        ``(N, C, H, W)`` float32 in [0, 1], in the same order at every call.

    Raises:
        DataError: the settings, a file or a label cannot be used; one bad image fails its split.
    """
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    form = ImageForm(image_size, channels)
    name = str(spec.get("name", "unnamed")) if isinstance(spec, Mapping) else "unnamed"
    return open_source(spec, name).split(split, site, form)
