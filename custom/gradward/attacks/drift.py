"""Where a client's weights were at each of its steps, guessed from where they ended.

Nothing of the client's training is needed for that, neither its labels nor its learning rate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor

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
        observation: with batch statistics.
        batches: for each local step, the indices of its images.
        reach: 0 or more; one of :data:`REACHES`.

    Returns:
        The trained parameters by name; none where they are those of the global state.
    """
    steps = len(batches)
    # Layers hardly ever differ in their momentum.
    shares = forward_weights(steps, observation.batch_statistics[0].momentum)
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
