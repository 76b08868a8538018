"""Where a client's weights were at each of its steps, guessed from where they ended.

Nothing of the client's training is needed for that, neither its labels nor its learning rate.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gradward.attacks.budget import Allowance
from gradward.attacks.observation import Observation, forward_weights

# How fast the weights may have gone: 0 keeps them at the global state until the last step, 1 takes
# all steps for equally long, and with 2 the earlier half of the steps did it all. Without 1.5 the
# search settled for 1 where 2 was true, and its images soon fitted the wrong weights.
REACHES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)

Batch = tuple[int, ...]


def weights_on_the_way(
    observation: Observation, batches: Sequence[Sequence[int]], reach: float
) -> dict[Batch, Mapping[str, Tensor]]:
    """Return the weights of each distinct batch, on the straight line from before to after.

    The k-th of K steps starts at ``before + min(1, reach (k-1)/K) (after - before)``. A batch that
    comes again gets the mean of its places, weighed as the running statistics weigh its steps, so
    that it is processed once however often it comes: to first order in the drift that is the same.

    Args:
        observation: of the update.
        batches: for each local step, the indices of its images.
        reach: 0 or more; one of :data:`REACHES`.

    Returns:
        The trained parameters by name; none where they are those of the global state.
    """
    steps = len(batches)
    # Layers hardly ever differ in their momentum; where none is seen no statistics weigh steps.
    layers = observation.batch_statistics
    shares = forward_weights(steps, layers[0].momentum if layers else None)
    weight: dict[Batch, float] = defaultdict(float)
    travelled: dict[Batch, float] = defaultdict(float)
    for step, (batch, share) in enumerate(zip(batches, shares, strict=True)):
        weight[tuple(batch)] += share
        travelled[tuple(batch)] += share * min(1.0, reach * step / steps)
    before = dict(observation.model.named_parameters())
    update = observation.parameter_update
    return {
        batch: {
            name: before[name].detach() + travelled[batch] / weight[batch] * moved
            for name, moved in update.items()
            if travelled[batch]
        }
        for batch in weight
    }


class Drift:
    """The weights of each batch, on the way that suits the images found so far best.

    How far they came before each step depends on which batch moved them: on a trained model one
    badly classified image often does it all. A line of equal steps was worse than frozen weights
    for every fifth client tried.

    Args:
        observation: of the update.
        batches: for each local step, the indices of its images.

    Attributes:
        weights: of each distinct batch, as :func:`weights_on_the_way`; at first the global state's.
    """

    def __init__(self, observation: Observation, batches: Sequence[Sequence[int]]):
        self._observation, self._batches = observation, batches
        self.weights = weights_on_the_way(observation, batches, reach=0.0)

    def fit(self, loss: Callable[[], Tensor], allowance: Allowance) -> None:
        """Take the weights with the lowest ``loss``; of one step there is nothing to guess.

        Args:
            loss: of the images found so far, at :attr:`weights` as they are when it is called.
            allowance: each guess counts as an evaluation of it; what is spent ends the guessing.
        """
        if len(self._batches) == 1:
            return
        best, lowest = self.weights, math.inf
        for reach in REACHES:
            if allowance.progress >= 1:
                break
            self.weights = weights_on_the_way(self._observation, self._batches, reach)
            allowance.meter.count()
            with torch.no_grad():
                value = float(loss())
            if value < lowest:
                best, lowest = self.weights, value
        self.weights = best
