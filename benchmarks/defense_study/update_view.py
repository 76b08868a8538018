"""Attackers made for defences of the update: a learned inverter, and linkage by simulation."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradward.attacks.head import last_linear
from gradward.batchnorm import BATCHNORM_BUFFERS
from gradward.data import ImageSet
from gradward.defenses.seeding import seeded
from gradward.training import State

from .clients import Clients
from .defence import Defence, Part
from .federation import Effort, FederationRun
from .networks import BATCH, Examples, FeatureInverter, fit_inverter, shifted
from .protocol import Trial
from .scoring import Evidence, Scorer

_EXAMPLES = 2000
_SKETCH = 256
_TINY = 1e-20


def attack_updates(
    trial: Trial,
    defence: Defence,
    model: nn.Module,
    run: FederationRun,
    scorer: Scorer,
    effort: Effort,
) -> dict[str, Evidence]:
    """Attack one-image updates of the first round, the label known.

    A network learns from updates that the attacker computes on images of its own through the same
    pipeline; the candidates of a gallery are told apart by simulating the update of each. The first
    round gives most: noise that does not shrink with the updates hides later ones better.

    Returns:
        The network's pictures with the better linkage of picture and simulation.
    """
    number = min(run.states)
    state = run.states[number]
    generator = trial.generator("learned", number)
    victims = stacked(
        [
            defence.one_step_update(
                model,
                state,
                Part(defence.sources[0], [position]),
                trial.generator("victim", number, column),
            )
            for column, position in enumerate(trial.victims.tolist())
        ]
    )
    guesses = trial.class_means[trial.victim_images.labels]
    reader, network = _train(trial, defence, model, state, effort, generator)
    pictures = network(reader.read(victims), guesses).clamp(0, 1)
    linked = link_by_simulation(trial, defence, model, state, victims)
    evidence = scorer.score(f"learned, round {number}", pictures, linked=linked)
    return {f"round {number}": evidence}


def stacked(updates: Sequence[State]) -> State:
    """Return many updates as one state of tensors ``(N, ...)``."""
    return {name: torch.stack([update[name] for update in updates]) for name in updates[0]}


class UpdateReader:
    """Turns one-image updates into vectors: the last layer's input, and a sketch of the rest.

    Args:
        model: one of the small networks; gives the last linear layer.
        image: ``(C, H, W)``, one of those behind the updates.
        generator: of the sketch's random projection.

    Attributes:
        maps: ``(C, h, w)`` shape of that layer's input.
    """

    def __init__(self, model: nn.Module, image: Tensor, generator: torch.Generator) -> None:
        self.maps = _feature_shape(model, image)
        self._last, _ = last_linear(model, image)
        counter = BATCHNORM_BUFFERS[2]
        # Projections by name: a withheld tensor changes nothing for the others.
        self._projections = {
            name: torch.randn(value.numel(), _SKETCH, generator=generator)
            for name, value in model.state_dict().items()
            if not name.endswith(counter) and name != f"{self._last}.weight"
        }
        self._scale: Tensor | float = 1.0

    def calibrate(self, updates: State) -> Tensor:
        """Read the updates and scale all further ones as these."""
        self._scale = 1.0
        vectors = self.read(updates)
        # Both parts are of unit size; what hardly varies here must not explode elsewhere.
        self._scale = vectors.std(dim=0).clamp_min(0.1)
        return vectors / self._scale

    def read(self, updates: State) -> Tensor:
        """Return ``(N, C h w + 256)`` of stacked updates; withheld tensors read as zeros."""
        bias, weight = updates[f"{self._last}.bias"], updates[f"{self._last}.weight"]
        # h of `single_image_features`, brought to unit size because noise makes it arbitrary.
        features = _unit(torch.einsum("nk,nkf->nf", bias, weight)) * weight.shape[2] ** 0.5
        sketch = torch.zeros(len(bias), _SKETCH)
        for name, projection in self._projections.items():
            if name in updates:
                sketch += _unit(updates[name].flatten(1)) @ projection
        return torch.cat([features, sketch], dim=1) / self._scale


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(_TINY)


def _train(
    trial: Trial,
    defence: Defence,
    model: nn.Module,
    state: State,
    effort: Effort,
    generator: torch.Generator,
) -> tuple[UpdateReader, nn.Module]:
    """Train the inverter on the attacker's own updates, a fifth of its images held out."""
    n = min(_EXAMPLES, 4 * effort.network_steps)
    chosen = torch.arange(n) % len(trial.known)
    images = shifted(trial.known.subset(chosen), generator)
    channels, height, width = images.images.shape[1:]
    reader = UpdateReader(model, images.images[0], generator)
    seen = reader.calibrate(imitate_updates(defence, model, state, images, generator))
    guesses = trial.class_means[images.labels]
    # By image, not by example: copies of one image must not stand on both sides.
    held = chosen % 5 == 0
    learn = (~held).nonzero().flatten()

    def draw() -> Examples:
        rows = learn[torch.randint(len(learn), (BATCH,), generator=generator)]
        return Examples(seen[rows], guesses[rows], images.images[rows])

    with seeded(generator):
        network: nn.Module = FeatureInverter(reader.maps, _SKETCH, (channels, height, width))
    check = Examples(seen[held], guesses[held], images.images[held])
    # Updates are harder to read than pictures.
    return reader, fit_inverter(network, draw, check, 2 * effort.network_steps)


def link_by_simulation(
    trial: Trial, defence: Defence, model: nn.Module, state: State, victims: State
) -> Tensor:
    """Name the candidate whose own update, without noise, is most like the observed one.

    Likeness is the cosine over all entries that were not pruned away, its mean over the tensors, or
    the likelihood under noise that is the same everywhere: the nearest update. The best of the
    three over all victims counts.

    Args:
        trial: gives victims and galleries.
        defence: gives learning rate and clipping.
        model: gives the architecture.
        state: that the updates start from.
        victims: what left them, stacked.

    Returns:
        ``(V,)`` probabilities, ties shared.
    """
    whole, by_tensor, nearness = torch.zeros(3, *trial.galleries.shape)
    labels = trial.victim_images.labels
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        positions, places = trial.galleries[rows].unique(return_inverse=True)
        candidates = trial.pool.subset(positions)
        simulated = _noiseless(defence, model, state, candidates)
        dots, sizes, cosines = torch.zeros(3, len(rows), len(positions))
        names = [name for name in simulated if name in victims]
        for name in names:
            ours = simulated[name].flatten(1)
            seen = victims[name][rows].flatten(1)
            dot, size = seen @ ours.T, (seen != 0).float() @ ours.square().T
            dots, sizes = dots + dot, sizes + size
            scale = seen.norm(dim=1, keepdim=True) * size.sqrt()
            cosines += dot / scale.clamp_min(_TINY) / len(names)
        whole[rows] = (dots / sizes.clamp_min(_TINY).sqrt()).gather(1, places)
        by_tensor[rows] = cosines.gather(1, places)
        nearness[rows] = (2 * dots - sizes).gather(1, places)
    return max(
        (_named(likeness, trial.truths) for likeness in (whole, by_tensor, nearness)),
        key=lambda success: float(success.mean()),
    )


def _named(likeness: Tensor, truths: Tensor) -> Tensor:
    best = likeness == likeness.max(dim=1, keepdim=True).values
    hit = best.gather(1, truths[:, None])[:, 0]
    return hit.double() / best.sum(dim=1)


def imitate_updates(
    defence: Defence, model: nn.Module, state: State, images: ImageSet, generator: torch.Generator
) -> State:
    """Return what would leave one-image clients with these images, all at once.

    It is `Defence.one_step_update` of each image by itself, without counters.
    """
    updates = _noiseless(defence, model, state, images)
    private = defence.settings.dp_sgd
    if private is not None:
        deviation = defence.settings.lr * private.max_grad_norm * defence.noise_multiplier
        for name, value in updates.items():
            updates[name] = value + deviation * torch.randn(value.shape, generator=generator)
    return stacked(
        [
            defence.send(None, {name: value[row] for name, value in updates.items()})
            for row in range(len(images))
        ]
    )


def _noiseless(defence: Defence, model: nn.Module, state: State, images: ImageSet) -> State:
    """Return the one-image updates with DP-SGD's clipping, but without its noise."""
    lr = defence.settings.lr
    updates = Clients(model, state).updates(images.images, images.labels, lr)
    private = defence.settings.dp_sgd
    if private is None:
        return updates
    # Without BatchNorm there are parameters only, and each update is its one gradient.
    sizes = torch.cat([value.flatten(1) for value in updates.values()], dim=1).norm(dim=1)
    kept = (lr * private.max_grad_norm / sizes.clamp_min(_TINY)).clamp(max=1)
    return {name: value * kept.view(-1, *[1] * (value.ndim - 1)) for name, value in updates.items()}


def _feature_shape(model: nn.Module, image: Tensor) -> tuple[int, int, int]:
    """Return ``(C, h, w)`` of what the small networks' last layer is fed with."""
    body = copy.deepcopy(model.get_submodule("body")).eval()
    with torch.no_grad():
        _, channels, height, width = body(image[None]).shape
    return int(channels), int(height), int(width)
