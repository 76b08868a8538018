"""Which labels an update was trained on, read from its last linear layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradward.attacks.batches import Batches
from gradward.attacks.head import InputRecorder, last_linear, momentum_gains
from gradward.attacks.label_rehearsal import LabelRehearsal, RehearsalBook
from gradward.attacks.observation import AttackRefused, Observation
from gradward.attacks.training_copy import training_copy
from gradward.data.images import ImageSet
from gradward.losses import class_probabilities
from gradward.training import TrainingSettings


@dataclass(frozen=True)
class InferredLabels:
    """What was read from an update.

    Attributes:
        values: ``(n_images,)`` int64, sorted; their assignment to batches is not known.
        by_public_images: whether labelled public images told them.
    """

    values: Tensor
    by_public_images: bool = False


def infer_labels(
    observation: Observation,
    settings: TrainingSettings,
    n_images: int,
    batches: Batches,
    prior: Tensor,
    public: ImageSet | None = None,
    rehearsals: RehearsalBook | None = None,
) -> InferredLabels:
    """Estimate how often each class occurs among the images behind an update.

    The cross-entropy's gradient at the last layer's bias is, for class c,
    ``g_c = mean_i(p_ic) - n_c / n``. The sign alone tells the label of one image (Zhao et al.,
    *iDLG*, 2020); with more, ``n_c = n (p_c - g_c)`` where p is the model's softmax on the prior
    (after Wainakh et al., *LLG*, PoPETs 2022). Several steps are taken as one at their mean
    gradient, which errs once the softmax moves much between them, and with momentum over several
    batches, of which the earlier ones weigh more. Without a bias the rows of the weight are
    summed: ``(p_c - 1[y=c]) sum(h)`` averaged over images, h the layer's input, not negative
    behind a ReLU.

    On a trained model p differs from image to image, and that fails: where labelled public images
    of every class are there, a :class:`LabelRehearsal` takes its place.

    Args:
        observation: the update and its global state.
        settings: the client's; ``lr``, ``momentum``, ``weight_decay`` give the gradient's scale.
        n_images: how many labels to return.
        batches: for each local step, the indices of the images assumed in it.
        prior: ``(B, C, H, W)`` in [0, 1], images like the client's.
        public: labelled images like the client's, if the attacker has some; a label below 0 is
            unknown.
        rehearsals: what was rehearsed before; None starts a book with seed 0.

    With ``loss="bce"`` sigmoids take the softmax's place, and the gradient is K times smaller.

    Raises:
        AttackRefused: no linear layer at the end, or an optimiser without a gradient's scale.
    """
    steps = len(batches)
    name, layer = last_linear(observation.model, prior[0])
    kind = "weight" if layer.bias is None else "bias"
    change = _rows(observation.parameter_update[f"{name}.{kind}"])
    if n_images == 1:
        # The only class whose logit was raised; true of any optimiser that descends.
        return InferredLabels(change.argmax().reshape(1))
    if settings.optimizer != "sgd":
        raise AttackRefused(
            f"labels of {n_images} images cannot be counted in an update by {settings.optimizer}"
        )
    gradient = -change / (settings.lr * sum(momentum_gains(steps, settings.momentum)))
    gradient -= settings.weight_decay * _rows(layer.get_parameter(kind).detach())
    inputs, logits = _last_layer_on(observation.model, name, prior)
    if layer.bias is None:
        gradient /= inputs.sum(dim=1).mean()
    if settings.loss == "bce":
        gradient = gradient * len(gradient)
    expected = n_images * (class_probabilities(settings.loss, logits).mean(dim=0) - gradient)
    rehearsed = None
    if public is not None:
        book = RehearsalBook(0) if rehearsals is None else rehearsals
        rehearsed = _rehearsed_counts(observation, settings, batches, public, name, book)
    if rehearsed is not None:
        expected = rehearsed
    counts = torch.zeros_like(expected)
    if steps == 1:
        # Below zero only where an image of the class is present, whatever the softmax.
        counts[gradient.argsort()[: min(n_images, int((gradient < 0).sum()))]] = 1
    while int(counts.sum()) < n_images:
        counts[(expected - counts).argmax()] += 1
    values = torch.arange(len(counts), device=counts.device).repeat_interleave(counts.long())
    return InferredLabels(values, by_public_images=rehearsed is not None)


def _rehearsed_counts(
    observation: Observation,
    settings: TrainingSettings,
    batches: list[list[int]],
    public: ImageSet,
    layer: str,
    book: RehearsalBook,
) -> Tensor | None:
    """Return the counts that a rehearsal tells; None where it is not to be had."""
    try:
        return LabelRehearsal(observation, settings, batches, public, layer).counts(book)
    except AttackRefused:
        return None


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 1 else tensor.sum(dim=1)


def _last_layer_on(model: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the layer's input ``(2B, features)`` and the logits, BatchNorm as in training."""
    own = training_copy(model)
    recorder = InputRecorder(own, name)
    with torch.no_grad():
        # Two copies, for layers that refuse a single value a channel.
        logits = own(torch.cat([images, images]))
    return recorder.input, logits
