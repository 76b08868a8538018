"""Drives LeakPro's modular attacks from a checkout: ``python -m attack_study.peer_leakpro``.

LeakPro is not on PyPI; ``--leakpro`` of ``benchmarks/attacks.py`` names the checkout. The code is
unmodified; learning rate and start, which its configuration has no place for, are set on the
finished attack.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn

from .peer_common import Attack, Found, Refused, name_operators, serve


def prepare(request: dict[str, Any]) -> Attack:
    """Set up one of LeakPro's preset attacks on a request.

    Raises:
        Refused: labels of several images, of which its inference finds each class once at most.
    """
    name_operators()
    logging.disable(logging.CRITICAL)
    from leakpro.attacks.gia_attacks.modular import presets
    from leakpro.attacks.gia_attacks.modular.components.optimization_building_blocks import (
        training_simulator,
    )
    from leakpro.fl_utils.fl_client_simulator import ClientObservations

    labels, shape = request["labels"], tuple(request["shape"])
    if labels is None and shape[0] > 1:
        raise Refused("its label inference finds each class once at most")
    net: nn.Module = request["model"]
    net.load_state_dict(request["global_state"])
    for parameter in net.parameters():
        parameter.requires_grad_()
    statistics = request["batch_statistics"]
    running = {
        name: [request["global_state"][f"{name}.running_{kind}"] for kind in ("mean", "var")]
        for name, module in net.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    # It expects running statistics after one step with momentum .1, and solves them itself.
    before = [tuple(pair) for pair in running.values()]
    after = [
        tuple(0.9 * old + 0.1 * new for old, new in zip(pair, statistics[name], strict=True))
        for name, pair in running.items()
        if name in statistics
    ]
    observations = ClientObservations(
        gradients=request["parameter_update"],
        pre_bn_stats=before if after else None,
        post_bn_stats=after or None,
        num_images=shape[0],
        input_shape=shape,
        labels=labels,
        data_mean=torch.zeros(1),
        data_std=torch.ones(1),
        training_settings=training_simulator.TrainingSettings(
            epochs=1,
            optimizer_type="sgd",
            training_batch_size=request["batch_size"],
            compute_mode="updates",
            model_mode="train",
        ),
    )
    configuration = getattr(presets, f"{request['attack']}_attack")()
    configuration.labels = "oracle" if labels is not None else "idlg"
    for name, value in request["options"].items():
        setattr(configuration, name, value)
    start = request["start"]

    def attack(iterations: int) -> Found:
        chosen = copy.deepcopy(configuration)
        chosen.max_iterations = iterations
        built = chosen.build(observations)
        built.optimization.training_simulator.meta_optimizer.lr = request["lr"]
        if start is not None:
            given = built.initialization.initialize

            def initialize(**options: Any) -> Any:
                result = given(**options)
                result.reconstruction.copy_(start.reshape(result.reconstruction.shape))
                return result

            built.initialization.initialize = initialize
        images, told = built.run_attack(
            target_model=net,
            client_observations=copy.deepcopy(observations),
            device=torch.device("cpu"),
            input_shape=shape,
        )
        found = told["inferred_labels"] if labels is None else None
        return Found(
            images.detach().reshape(shape),
            float(told["final_loss"]),
            int(told["iterations"]) + 1,
            None if found is None else torch.tensor(found).flatten(),
        )

    return attack


def _version() -> str:
    name_operators()
    import leakpro.attacks.gia_attacks.modular.presets  # noqa: F401

    return f"LeakPro, checkout (torch {torch.__version__})"


if __name__ == "__main__":
    serve(prepare, _version)
