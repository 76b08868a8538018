"""Drives breaching's installed wheel, unmodified: ``python -m attack_study.peer_breaching``.

Its total variation is written for three channels, so the candidate has three and the network sees
their mean. With a user's buffers it simulates in evaluation mode; without, in training mode.
"""

from __future__ import annotations

import copy
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from .peer_common import Attack, Found, Refused, name_operators, serve

_BUFFERED = ("seethroughgradients",)
_CHANNELS = 3
_SILENT = 10**9


class _Grey(nn.Module):
    """The network behind the mean over the candidate's channels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images.mean(1, keepdim=True))
        return logits


class _Metadata(dict[str, Any]):
    """A mapping whose values are attributes too, as breaching reads either way."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def prepare(request: dict[str, Any]) -> Attack:
    """Set up one attack of breaching's on a request.

    Raises:
        Refused: its multi-step mode without labels, or its buffers without any.
    """
    name_operators()
    import breaching

    # The analytic attack reads the layers of a Sequential from last to first, and has no loop.
    analytic = request["attack"] == "analytic"
    net = request["model"]
    net.load_state_dict(request["global_state"])
    model = net if analytic else _Grey(net)
    channels = 1 if analytic else _CHANNELS
    shared = _shared(request, net)
    payload = {
        "parameters": [value.detach().clone() for value in net.parameters()],
        "buffers": None,
        "metadata": _Metadata(
            modality="vision",
            task="classification",
            classes=[m.out_features for m in net.modules() if isinstance(m, nn.Linear)][-1],
            shape=[channels, *request["shape"][2:]],
            mean=[0.0] * channels,
            std=[1.0] * channels,
        ),
    }
    start = request["start"]
    options = {} if start is None else {"initial_data": start.expand(-1, channels, -1, -1)}
    overrides = [f"{key}={value}" for key, value in request["options"].items()]

    def attack(iterations: int) -> Found:
        bounds = [f"optim.max_iterations={iterations}", f"optim.callback={_SILENT}"]
        attacker = breaching.attacks.prepare_attack(
            copy.deepcopy(model),
            nn.CrossEntropyLoss(),
            breaching.get_attack_config(
                request["attack"], overrides if analytic else [*overrides, *bounds]
            ),
            {"device": torch.device("cpu"), "dtype": torch.float},
        )
        found, statistics = attacker.reconstruct([payload], [copy.deepcopy(shared)], {}, **options)
        losses = statistics.get("Trial_0_Val", [])
        return Found(
            found["data"].mean(1, keepdim=True),
            min(losses) if losses else None,
            len(losses),
            found["labels"] if request["labels"] is None else None,
        )

    return attack


def _shared(request: dict[str, Any], net: nn.Module) -> dict[str, Any]:
    """Return what a user shares, in breaching's form: a gradient, or an update of several steps."""
    labels, local = request["labels"], None
    update = [request["parameter_update"][name] for name, _ in net.named_parameters()]
    if request["steps"] > 1:
        if labels is None:
            raise Refused("several steps: it takes each step's labels from the client")
        local = {
            "lr": request["lr"],
            "steps": request["steps"],
            "data_per_step": request["batch_size"],
            "labels": list(labels.split(request["batch_size"])),
        }
    return {
        "gradients": update if local else [-change / request["lr"] for change in update],
        "buffers": _buffers(request, net) if request["attack"] in _BUFFERED else None,
        "metadata": {
            "num_data_points": request["shape"][0],
            "labels": labels,
            "local_hyperparams": local,
        },
    }


def _buffers(request: dict[str, Any], net: nn.Module) -> list[Tensor]:
    """Return the batch statistics in the place of the running ones, in the model's order."""
    statistics = request["batch_statistics"]
    if not statistics:
        raise Refused("there are no batch statistics")
    values = []
    for name, value in net.named_buffers():
        layer, _, kind = name.rpartition(".")
        mean, var = statistics[layer]
        values.append({"running_mean": mean, "running_var": var}.get(kind, value))
    return values


def _version() -> str:
    name_operators()
    import breaching  # noqa: F401

    return f"breaching {version('breaching')} (torch {torch.__version__})"


if __name__ == "__main__":
    serve(prepare, _version)
