"""Every attack on an update, and the same attacks on a wrong one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradward.attacks.budget import Budget
from gradward.attacks.control import control_update, withhold_alike
from gradward.attacks.label_rehearsal import RehearsalBook
from gradward.attacks.observation import Observation
from gradward.attacks.portfolio import AttackResult, Progress, run_portfolio
from gradward.attacks.precision import Precision
from gradward.attacks.spec import AttackSpec
from gradward.data.images import ImageSet
from gradward.training import TrainingSettings


def run_beside_control(
    observation: Observation,
    update: Mapping[str, Any],
    *,
    precision: Precision | None = None,
    control_images: Tensor,
    control_labels: Tensor,
    prior: Tensor,
    n_images: int,
    settings: TrainingSettings,
    attacks: Sequence[AttackSpec],
    budget: Budget,
    seed: int,
    device: torch.device | str = "cpu",
    labels: Tensor | None = None,
    batches: Sequence[Sequence[int]] | None = None,
    public: ImageSet | None = None,
    rehearsals: RehearsalBook | None = None,
    progress: Progress | None = None,
) -> tuple[list[AttackResult], list[AttackResult]]:
    """Run the portfolio on an update and on its wrong-update control.

    Args:
        observation: of ``update``.
        update: after - before, by name; the control withholds what it withholds.
        precision: in which it came, for the control comes in the same; None reads it from
            ``update``.
        control_images: ``(N, C, H, W)`` in [0, 1], public.
        control_labels: ``(N,)`` int64.
        prior, n_images, settings, attacks, budget, seed, device, labels, batches, public: of both
            runs, as of :func:`gradward.attacks.portfolio.run_portfolio`; no control image may be
            among the public ones, or the control would be rebuilt with more knowledge than the
            update. The control trains in given batches too.
        rehearsals: as there; update and control share them in any case.
        progress: as there; the attacks on the control go by their name and ``" (control)"``.

    Returns:
        The results on the update, one an attack, and those on the control: of the attacks that ran
        on the update, for of the others it would say nothing.

    Raises:
        ValueError, FloatingPointError: the control cannot be trained.
    """
    own = observation.model
    steps = observation.steps or settings.number_of_steps(n_images)
    of_control = None
    # Of a long training the control costs as much again, for nothing where all attacks refuse.
    if any(spec.takes(n_images, steps) for spec in attacks):
        wrong = control_update(
            own, own.state_dict(), control_images, control_labels, settings, n_images, seed, batches
        )
        came_in = Precision.of(update, of_state=False) if precision is None else precision
        alike = came_in.round(withhold_alike(wrong, update), own.state_dict())
        of_control = Observation.from_update(own, own.state_dict(), alike)

    def tell_of_control(attack: str, share: float) -> None:
        if progress is not None:
            progress(f"{attack} (control)", share)

    common: dict[str, Any] = {
        "prior": prior,
        "n_images": n_images,
        "settings": settings,
        "budget": budget,
        "seed": seed,
        "device": device,
        "labels": labels,
        "batches": batches,
        "public": public,
        "rehearsals": RehearsalBook(seed) if rehearsals is None else rehearsals,
    }
    real = run_portfolio(observation, attacks=attacks, progress=progress, **common)
    ran = {result.attack for result in real if result.status == "ok"}
    again = [spec for spec in attacks if spec.name in ran]
    if of_control is None:
        return real, []
    return real, run_portfolio(of_control, attacks=again, progress=tell_of_control, **common)
