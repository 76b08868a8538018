"""Counts labels by what updates of public images with known labels look like.

On a trained model the last layer's gradient alone tells little: an image that is classified right
leaves next to nothing in it. The same model's batch statistics and gradient on public images show
how either goes with the labels, and a linear regression reads them (a shadow model's idea, Shokri
et al., IEEE S&P 2017, on one update instead of one model).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradward.attacks.batches import images_in_batches
from gradward.attacks.frozen_client import FrozenClient
from gradward.attacks.head import layer_change
from gradward.attacks.observation import AttackRefused, Observation
from gradward.attacks.simulation import combine_calls
from gradward.data.images import ImageSet
from gradward.randomness import own_randomness
from gradward.training import TrainingSettings

REHEARSALS = 200
# More images an update cost so much more, and go with fewer rehearsals; beyond the limit there are
# too few to learn from, and no attack that needs labels recovers any.
MOST_PASSES = 32 * REHEARSALS
MOST_IMAGES = 128
LEAST_IMAGES_OF_A_CLASS = 2
# Drawn shares of the classes: from nearly even ones to a single class.
_CONCENTRATION = 1.5
# Of each image, in pixels. Without it the regression learns the few public images by heart.
_LARGEST_SHIFT = 2
_RIDGE = 0.1
# Standard deviations from the rehearsals' mean.
_FARTHEST = 5.0
# A product of logits' and slopes' moments for each pair of classes: too many for many classes.
_MOST_CLASSES_IN_PAIRS = 16


@dataclass(frozen=True)
class Rehearsed:
    """What rehearsed updates looked like.

    Attributes:
        kinds: of each kind of value that the regression reads, ``(rehearsals, values)``.
        counts: ``(rehearsals, classes)``, images of each class.
    """

    kinds: list[Tensor]
    counts: Tensor


class RehearsalBook:
    """Rehearsals by all that they depend on, so that equal ones are made once.

    They depend on the global state, not on the update: an update and its control share them, and
    so do sites that train alike on equally many images.

    Args:
        seed: of every rehearsal.
    """

    # Of a DenseNet121 one takes 70 MB.
    _KEPT = 4

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._made: OrderedDict[str, Rehearsed] = OrderedDict()

    def recall(self, key: str, make: Callable[[torch.Generator], Rehearsed]) -> Rehearsed:
        """Return what was made for ``key``, or make it.

        Args:
            key: a digest of all that ``make`` goes by but the generator.
            make: rehearses with a generator of the CPU, always in the same state.
        """
        if key not in self._made:
            with own_randomness(self._seed, "cpu"):
                self._made[key] = make(torch.Generator().manual_seed(self._seed))
        self._made.move_to_end(key)
        while len(self._made) > self._KEPT:
            self._made.popitem(last=False)
        return self._made[key]


class LabelRehearsal:
    """Reads counts of labels off an update, calibrated on public images.

    The weights stay at the global state over the K steps, see :class:`FrozenClient`.

    Args:
        observation: the update and its global state.
        settings: of the client.
        batches: for each local step, the indices of its images.
        public: labelled images like the client's.
        layer: name of the last linear layer.

    Raises:
        AttackRefused: a class of which fewer than two images are there, more than
            :data:`MOST_IMAGES` images behind the update, or an optimiser whose update is no
            multiple of a gradient.
    """

    def __init__(
        self,
        observation: Observation,
        settings: TrainingSettings,
        batches: list[list[int]],
        public: ImageSet,
        layer: str,
    ):
        change = layer_change(observation, settings, layer)
        weight = observation.model.get_submodule(layer).get_parameter("weight")
        self._weight = weight.detach()
        classes = len(self._weight)
        self._of_class = [torch.nonzero(public.labels == label)[:, 0] for label in range(classes)]
        scarce = [
            k for k, found in enumerate(self._of_class) if len(found) < LEAST_IMAGES_OF_A_CLASS
        ]
        if scarce:
            raise AttackRefused(f"there are too few public images of class {scarce[0]}")
        self._n_images = images_in_batches(batches)
        if self._n_images > MOST_IMAGES:
            raise AttackRefused(f"{self._n_images} images are too many to rehearse")
        self._key = _digest(observation, settings, batches, public)
        self._images = public.images.to(self._weight)
        self._client = FrozenClient(observation, settings, batches, layer)
        self._layers = observation.batch_statistics
        statistics = [(layer.mean, layer.var) for layer in self._layers]
        self._has_bias = len(change) > 1
        self._observed = self._row(change, statistics)

    def counts(self, book: RehearsalBook) -> Tensor:
        """Return how many images of each class are expected, ``(classes,)`` float32.

        Args:
            book: knows what was rehearsed before.
        """
        rehearsed = book.recall(self._key, self._rehearse_all)
        seen, observed = [], []
        for kind, real in zip(rehearsed.kinds, self._observed, strict=True):
            mean, deviation = kind.mean(dim=0), kind.std(dim=0)
            # A value that never moved tells nothing; nor can one be read far outside of what was
            # rehearsed. Every kind weighs the same, however many values it has.
            scale = deviation.masked_fill(deviation == 0, torch.inf)
            weight = kind.shape[1] ** -0.5
            seen.append(weight * (kind - mean) / scale)
            observed.append(weight * ((real - mean) / scale).clamp(-_FARTHEST, _FARTHEST))
        known, row = torch.cat(seen, dim=1), torch.cat(observed)
        # Ridge regression in its dual form: there are fewer rehearsals than values.
        kernel = known @ known.T + _RIDGE * torch.eye(len(known)).to(known)
        centre = rehearsed.counts.mean(dim=0)
        return centre + (known @ row) @ torch.linalg.solve(kernel, rehearsed.counts - centre)

    def _rehearse_all(self, generator: torch.Generator) -> Rehearsed:
        number = min(REHEARSALS, MOST_PASSES // self._n_images)
        rows, counts = zip(*(self._rehearse(generator) for _ in range(number)), strict=True)
        return Rehearsed(
            [torch.stack(values) for values in zip(*rows, strict=True)], torch.stack(counts)
        )

    def _rehearse(self, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
        labels, images = self._draw(generator)
        with torch.no_grad():
            passes = self._client.passes(images)
            change = self._client.head_change(passes, labels.to(images.device))
        calls = [call for item in passes for call in item.statistics]
        counts = torch.bincount(labels, minlength=len(self._weight))
        return self._row(change, combine_calls(calls, self._layers)), counts.to(self._weight)

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return labels in random shares, and public images of theirs, shifted a little."""
        # Ratios of gamma variates are a Dirichlet distribution, and torch's takes no generator.
        shares = torch._standard_gamma(
            torch.full((len(self._weight),), _CONCENTRATION), generator=generator
        )
        labels = torch.multinomial(shares, self._n_images, replacement=True, generator=generator)
        images = []
        for label in labels.tolist():
            found = self._of_class[label]
            chosen = found[int(torch.randint(len(found), (), generator=generator))]
            shift = torch.randint(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1, (2,), generator=generator)
            images.append(self._images[chosen].roll(shift.tolist(), dims=(1, 2)))
        return labels, torch.stack(images)

    def _row(self, change: list[Tensor], statistics: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Return what the regression reads, a vector a kind."""
        weight = change[0]
        row = [change[1] if self._has_bias else weight.sum(dim=1)]
        if len(weight) <= _MOST_CLASSES_IN_PAIRS:
            row.append((weight @ self._weight.T).flatten())
        if statistics:
            parts = [torch.cat([mean, var.clamp(min=1e-12).log()]) for mean, var in statistics]
            row.append(torch.cat(parts))
        return row


def _digest(
    observation: Observation,
    settings: TrainingSettings,
    batches: list[list[int]],
    public: ImageSet,
) -> str:
    """Name all that rehearsals depend on."""
    told = hashlib.sha256()
    layers = [(layer.name, layer.steps, layer.momentum) for layer in observation.batch_statistics]
    frozen = [name for name, module in observation.model.named_modules() if not module.training]
    told.update(repr((settings, batches, layers, frozen)).encode())
    state = observation.model.state_dict(prefix="model.")
    for name, value in {**state, "images": public.images, "labels": public.labels}.items():
        told.update(repr((name, value.dtype, tuple(value.shape), value.device.type)).encode())
        told.update(value.detach().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()
