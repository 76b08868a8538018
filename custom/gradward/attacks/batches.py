"""Which images shared a step of the client's, and in which order: assumed, or given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

Batches = list[list[int]]


def assumed_batches(sizes: Sequence[int], steps: int) -> Batches:
    """Return ``steps`` batches of consecutive images, over again once all were used.

    The client's shuffling is unknown, but any order within the first epoch is only a relabelling
    of the images; what is truly assumed is that later epochs repeat the first one's batches.

    Args:
        sizes: of an epoch's batches, in order.
        steps: of the client.
    """
    images = iter(range(sum(sizes)))
    epoch = [list(islice(images, size)) for size in sizes]
    return [epoch[step % len(epoch)] for step in range(steps)]


def images_in_batches(batches: Sequence[Sequence[int]]) -> int:
    """Return how many images there are in given batches.

    Raises:
        ValueError: they are no lists of indices.
    """
    if not isinstance(batches, list | tuple) or not all(_is_batch(batch) for batch in batches):
        raise ValueError(
            "batches must be a list with a list of image indices for each step, like "
            f"[[0, 1], [1, 0]], got {str(batches)[:80]}"
        )
    return len({index for batch in batches for index in batch})


def given_batches(
    batches: Sequence[Sequence[int]], n_images: int, steps: int, largest: int
) -> Batches:
    """Return the batches that an attacker was told, after a check against all else it knows.

    Args:
        batches: for each step, the indices of its images, counted from 0.
        n_images: of the client; each must be in a step.
        steps: of the client.
        largest: images that a step has at most.

    Raises:
        ValueError: no client can have trained so; names the first step or image at fault.
    """
    distinct = images_in_batches(batches)
    if len(batches) != steps:
        raise ValueError(
            f"batches lists {len(batches)} steps, but the client took {steps}; list every step of "
            "every epoch"
        )
    for number, batch in enumerate(batches, start=1):
        beyond = [index for index in batch if not 0 <= index < n_images]
        if beyond:
            fault = f"image {beyond[0]}; {n_images} images are counted from 0 to {n_images - 1}"
        elif len(set(batch)) < len(batch):
            fault = "an image twice; list each once"
        elif not 0 < len(batch) <= largest:
            fault = f"{len(batch)} images; a step has 1 to {largest} with this batch size"
        else:
            continue
        raise ValueError(f"step {number} of batches has {fault}")
    if distinct < n_images:
        seen = {index for batch in batches for index in batch}
        missing = min(set(range(n_images)) - seen)
        raise ValueError(
            f"image {missing} is in no step of batches; leave it out of the number of images"
        )
    # Within a step the order changes nothing, and what is sorted is known again when it recurs.
    return [sorted(batch) for batch in batches]


def _is_batch(batch: object) -> bool:
    return isinstance(batch, list | tuple) and all(
        isinstance(index, int) and not isinstance(index, bool) for index in batch
    )
