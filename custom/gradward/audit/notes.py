"""What a reader of an audit must know besides its figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from gradward.attacks import AttackResult, Observation
from gradward.attacks.dropout import draws
from gradward.attacks.precision import Precision
from gradward.audit.references import References
from gradward.training import TrainingSettings


def of_update(
    observation: Observation,
    settings: TrainingSettings,
    n_images: int,
    precision: Precision,
    image: Tensor,
) -> Iterator[str]:
    """Yield what is odd about an update, whatever is made of it.

    Args:
        observation: of the update.
        settings: of the client, as the attacker is told.
        n_images: that are reconstructed.
        precision: in which the update came.
        image: ``(C, H, W)``, like the client's.
    """
    expected = settings.number_of_steps(n_images)
    if observation.steps not in (None, expected):
        yield (
            f"The update counts {observation.steps} local steps, the settings make {expected} of "
            f"{n_images} images; the attacks went by the update."
        )
    if draws(observation.model, image):
        yield (
            "The network draws at random while it trains, as dropout does. What the client drew is "
            "its secret: the attacks leave dropout out, and come only near."
        )
    if coarser := precision.coarser_than(observation.model.state_dict()):
        form = "full state" if precision.of_state else "difference"
        yield (
            f"The update is a {form} in {' and '.join(coarser)}, of fewer digits than the network "
            "has: what its rounding hides may be why attacks fail or do not apply, maps first. The "
            "control was rounded alike. An attacker who gets the update unrounded may do better."
        )


def of_attacks(
    real: Sequence[AttackResult],
    n_images: int,
    references: References,
    order_given: bool,
    truth: Tensor | None,
) -> Iterator[str]:
    """Yield how the attacks that ran are to be taken; nothing where none did.

    Args:
        real: the results on the update.
        n_images: that were reconstructed.
        references: prior and public images.
        order_given: whether the attacker was told which images each step took.
        truth: ``(m, C, H, W)``, or None.
    """
    if all(result.status != "ok" for result in real):
        return
    if order_given:
        yield "The attacks were told which images each local step took."
    if references.prior_is_stand_in:
        yield (
            "The attacks started from histology patches, for want of images like the client's; an "
            "attacker who has such images does better."
        )
    if truth is not None and len(truth) != n_images:
        more = "true images" if len(truth) > n_images else "reconstructions"
        yield (
            f"{len(truth)} true images were given and {n_images} rebuilt: of the {more} only those "
            "that suit best were compared, which raises every score, the control's as well."
        )
