"""Attackers made for defences of the update: a learned inverter, and linkage by simulation."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradward.attacks.head import last_linear
from gradward.attacks.observation import BUFFERS
from gradward.data import ImageSet
from gradward.defenses.seeding import seeded
from gradward.training import RawImages, State

from .clients import Clients
from .defence import Defence, Part
from .federation import Effort, FederationRun
from .networks import BATCH, Examples, FeatureInverter, fit_inverter, shifted
from .protocol import Trial
from .scoring import Evidence, Scorer

_EXAMPLES = 1200
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
    """Attack one-image updates, early, midway and late, the label known.

    A network learns from updates that the attacker computes on images of its own through the same
    pipeline; the candidates of a gallery are told apart by simulating the update of each.

    Returns:
        By round, the network's pictures with the better linkage of picture and simulation.
    """
    found = {}
    for number, state in run.states.items():
        generator = trial.generator("learned", number)
        victims = [
            defence.one_step_update(
                model,
                state,
                Part(defence.sources[0], [position]),
                trial.generator("victim", number, column),
            )
            for column, position in enumerate(trial.victims.tolist())
        ]
        guesses = trial.class_means[trial.victim_images.labels]
        reader, network = _train(trial, defence, model, state, effort, generator)
        pictures = network(reader.read(victims), guesses).clamp(0, 1)
        linked = link_by_simulation(trial, defence, model, state, victims)
        found[f"round {number}"] = scorer.score(f"learned, round {number}", pictures, linked=linked)
    return found


class UpdateReader:
    """Turns one-image updates into vectors: the last layer's input, and a sketch of the rest.

    Args:
        model: gives the last linear layer.
        maps: ``(C, h, w)`` shape of its input.
        generator: of the sketch's random projection.
    """

    def __init__(
        self, model: nn.Module, maps: tuple[int, int, int], generator: torch.Generator
    ) -> None:
        self.maps = maps
        self._last, _ = last_linear(model)
        counter = BUFFERS[2]
        self._names = [
            name
            for name in model.state_dict()
            if not name.endswith(counter) and name != f"{self._last}.weight"
        ]
        entries = sum(model.state_dict()[name].numel() for name in self._names)
        self._projection = torch.randn(entries, _SKETCH, generator=generator) / _SKETCH**0.5
        self._scale: Tensor | float = 1.0

    def calibrate(self, updates: Sequence[State]) -> Tensor:
        """Read the updates and scale all further ones as these."""
        self._scale = 1.0
        vectors = self.read(updates)
        self._scale = vectors.std(dim=0).clamp_min(1e-6)
        return vectors / self._scale

    def read(self, updates: Sequence[State]) -> Tensor:
        """Return ``(N, C h w + 256)``; withheld tensors read as zeros."""
        return torch.stack([self._read(update) for update in updates]) / self._scale

    def _read(self, update: State) -> Tensor:
        bias, weight = update[f"{self._last}.bias"], update[f"{self._last}.weight"]
        # h of `single_image_features`, brought to unit size because noise makes it arbitrary.
        features = bias @ weight / bias.square().sum().clamp_min(_TINY)
        start = 0
        sketch = torch.zeros(_SKETCH)
        for name in self._names:
            value = update.get(name)
            if value is None:
                continue
            flat = value.flatten().float()
            rows = self._projection[start : start + len(flat)]
            sketch += (flat / flat.norm().clamp_min(_TINY)) @ rows
            start += len(flat)
        features = features / features.norm().clamp_min(_TINY) * features.numel() ** 0.5
        return torch.cat([features, sketch])


def _train(
    trial: Trial,
    defence: Defence,
    model: nn.Module,
    state: State,
    effort: Effort,
    generator: torch.Generator,
) -> tuple[UpdateReader, nn.Module]:
    """Train the inverter on the attacker's own updates, a fifth of its images held out."""
    n = min(_EXAMPLES, 2 * effort.network_steps)
    chosen = torch.arange(n) % len(trial.known)
    images = shifted(trial.known.subset(chosen), generator)
    updates = [
        defence.one_step_update(model, state, source, generator) for source in _singles(images)
    ]
    channels, height, width = shape = images.images.shape[1:]
    reader = UpdateReader(model, _feature_shape(model, shape), generator)
    seen = reader.calibrate(updates)
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
    return reader, fit_inverter(network, draw, check, effort.network_steps)


def link_by_simulation(
    trial: Trial, defence: Defence, model: nn.Module, state: State, victims: Sequence[State]
) -> Tensor:
    """Name the candidate whose own update, without noise, is most like the observed one.

    Likeness is the cosine over all entries that were not pruned away, or its mean over the tensors;
    the better of the two over all victims counts.

    Returns:
        ``(V,)`` probabilities, ties shared.
    """
    clients = Clients(model, state)
    whole = torch.zeros(len(victims), trial.galleries.shape[1])
    by_tensor = torch.zeros_like(whole)
    labels = trial.victim_images.labels
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        positions, places = trial.galleries[rows].unique(return_inverse=True)
        candidates = trial.pool.subset(positions)
        simulated = clients.updates(candidates.images, candidates.labels, defence.settings.lr)
        dots, sizes, cosines = torch.zeros(3, len(rows), len(positions))
        names = [name for name in simulated if name in victims[0]]
        for name in names:
            ours = simulated[name].flatten(1)
            seen = torch.stack([victims[row][name].flatten() for row in rows.tolist()])
            dot, size = seen @ ours.T, (seen != 0).float() @ ours.square().T
            dots, sizes = dots + dot, sizes + size
            scale = seen.norm(dim=1, keepdim=True) * size.sqrt()
            cosines += dot / scale.clamp_min(_TINY) / len(names)
        whole[rows] = (dots / sizes.clamp_min(_TINY).sqrt()).gather(1, places)
        by_tensor[rows] = cosines.gather(1, places)
    return max(
        (_named(likeness, trial.truths) for likeness in (whole, by_tensor)),
        key=lambda success: float(success.mean()),
    )


def _named(likeness: Tensor, truths: Tensor) -> Tensor:
    best = likeness == likeness.max(dim=1, keepdim=True).values
    hit = best.gather(1, truths[:, None])[:, 0]
    return hit.double() / best.sum(dim=1)


def _singles(images: ImageSet) -> list[RawImages]:
    return [
        RawImages(images.images[i : i + 1], images.labels[i : i + 1]) for i in range(len(images))
    ]


def _feature_shape(model: nn.Module, shape: Sequence[int]) -> tuple[int, int, int]:
    """Return ``(C, h, w)`` of what the small networks' last layer is fed with."""
    body = copy.deepcopy(model.get_submodule("body")).eval()
    with torch.no_grad():
        _, channels, height, width = body(torch.zeros(1, *shape)).shape
    return int(channels), int(height), int(width)
