"""Global states and updates on disk, read without ever unpickling."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gradward.attacks.spool import load_state
from gradward.batchnorm import is_batchnorm_buffer
from gradward.training import State

UpdateIs = Literal["auto", "state", "difference"]
# A full state lies this near to the global one, in parts of the latter's length. An update that is
# as long as the weights themselves would be no training.
NEAR = 0.5


class StateFileError(ValueError):
    """A file that cannot be used as a state; the message names the file and the remedy."""


def read_state(path: Path | str) -> State:
    """Read tensors by name.

    Args:
        path: ``.pt`` or ``.pth`` (torch), ``.npz`` (numpy) or ``.safetensors``. A checkpoint that
            holds one state under a name of its own, ``{"state_dict": {...}, "epoch": 3}``, will
            do; so will the prefix ``module.`` that torch's parallel wrappers put before all names.

    Returns:
        CPU tensors by name.

    Raises:
        StateFileError: no such file, not one of these, damaged, holding more than tensors and
            plain values, or holding several states.
    """
    path = Path(path)
    if not path.is_file():
        raise StateFileError(f"{path}: there is no such file")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise StateFileError(f"{path}: a state is read from {', '.join(_READERS)}; save it as one")
    # The readers raise anything from OSError to zlib.error on a damaged file.
    try:
        content = reader(path)
    except pickle.UnpicklingError:
        raise StateFileError(
            f"{path} is damaged or holds Python objects other than tensors, which are never "
            "unpickled; save the state alone: torch.save(model.state_dict(), ...)"
        ) from None
    except Exception as error:
        raise StateFileError(
            f"{path} cannot be read as {path.suffix} ({type(error).__name__}): it is damaged or of "
            "another format; save the state again"
        ) from None
    return _without_prefix(_only_state(content, path))


def state_files(folder: Path) -> list[Path]:
    """Return the files of a folder that :func:`read_state` reads, in the order of their names.

    Others, hidden ones and folders are passed over.
    """
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.suffix.lower() in _READERS
    )


def as_difference(
    global_state: Mapping[str, Any], update: Mapping[str, Any], update_is: UpdateIs = "auto"
) -> tuple[State, Literal["state", "difference"]]:
    """Return what a client's training changed, and as what ``update`` was taken.

    Args:
        global_state: tensors or arrays by name, where the client started.
        update: the client's full state afterwards, or its difference from ``global_state``;
            BatchNorm's running statistics and counters are subtracted like all the rest.
        update_is: which of the two. ``"auto"`` takes it for a full state where all floating-point
            values but BatchNorm's statistics together lie within half the global state's length
            of it: a difference lies about one length away.

    Returns:
        after - before by name, and ``"state"`` or ``"difference"``.
    """
    before = {name: torch.as_tensor(value) for name, value in global_state.items()}
    given = {name: torch.as_tensor(value) for name, value in update.items()}
    # Names and shapes that do not fit are left as they are: the observation names them.
    fitting = [k for k, v in given.items() if k in before and before[k].shape == v.shape]
    if update_is == "auto":
        update_is = "state" if _is_near(before, given, fitting) else "difference"
    if update_is == "difference":
        return given, update_is
    # In float64, and so from half precision too, the subtraction itself loses nothing.
    changed = {name: given[name].double() - before[name].double() for name in fitting}
    return {**given, **changed}, update_is


def _is_near(before: State, given: State, names: list[str]) -> bool:
    away = length = 0.0
    for name in names:
        if before[name].is_floating_point() and not is_batchnorm_buffer(name):
            start = before[name].double()
            away += float((given[name].double() - start).square().sum())
            length += float(start.square().sum())
    # Written so that NaN, which compares as false, is no state.
    return away < NEAR**2 * length


def _only_state(content: Any, path: Path) -> State:
    if _is_state(content):
        return dict(content)
    inner = content if isinstance(content, Mapping) else {}
    found = [str(name) for name, value in inner.items() if _is_state(value)]
    if len(found) == 1:
        return dict(inner[found[0]])
    if found:
        raise StateFileError(
            f"{path} holds several states ({', '.join(map(repr, found))}); save one of them alone"
        )
    raise StateFileError(
        f"{path} holds no state, that is tensors by name; save one: "
        "torch.save(model.state_dict(), ...)"
    )


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def _without_prefix(state: State) -> State:
    prefix = "module."
    if all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


_READERS: Mapping[str, Callable[[Path], Any]] = {
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".npz": load_state,
    ".safetensors": _read_safetensors,
}
