"""States on disk: three formats, both kinds of update, and refusals that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gradward.attacks.spool import save_state
from gradward.state_files import StateFileError, as_difference, read_state
from gradward.training import State, state_copy, state_difference


def batchnorm_state(seed: int = 0) -> State:
    torch.manual_seed(seed)
    return state_copy(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))


def after(before: State) -> State:
    changed = {name: value.clone() for name, value in before.items()}
    changed["0.weight"] += 0.01
    changed["1.running_mean"] += 5.0
    changed["1.num_batches_tracked"] += 3
    return changed


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".npz", ".safetensors"])
def test_every_format_gives_the_same_tensors(tmp_path: Path, suffix: str) -> None:
    state, file = batchnorm_state(), tmp_path / f"state{suffix}"
    write = {".npz": save_state, ".safetensors": lambda path, values: save_file(values, path)}
    write.get(suffix, lambda path, values: torch.save(values, path))(file, state)
    read = read_state(file)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "train_conf": None, "meta_props": {"round": 2}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
    ],
)
def test_a_checkpoint_with_one_state_in_it_will_do(tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(batchnorm_state()), tmp_path / "g.pt")
    assert read_state(tmp_path / "g.pt").keys() == batchnorm_state().keys()


class Code:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("run-by-pickle"),))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("g.pt", {"model": {"a": torch.ones(1)}, "ema": {"a": torch.ones(1)}}, "'model', 'ema'"),
        ("g.pt", {"epoch": 3}, "holds no state"),
        ("g.pt", nn.Linear(1, 1), "never unpickled"),
        ("g.pt", {"state_dict": {"a": torch.ones(1)}, "hook": Code()}, "never unpickled"),
        ("g.pt", b"PK no archive", "damaged"),
        ("g.npz", b"PK no archive", "cannot be read as .npz"),
        ("g.safetensors", b"no tensors at all", "cannot be read as .safetensors"),
        ("g.pkl", b"", "save it as one"),
        ("g.pt", None, "there is no such file"),
    ],
)
def test_refusals_name_the_file_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(StateFileError) as refusal:
        read_state(file)
    assert words in str(refusal.value) and name in str(refusal.value)
    assert not Path("run-by-pickle").exists()


def test_objects_in_npz_are_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("g.npz", a=np.array([Code()], dtype=object))
    with pytest.raises(StateFileError, match=r"cannot be read as \.npz"):
        read_state("g.npz")
    assert not Path("run-by-pickle").exists()


def test_a_full_state_is_told_from_a_difference() -> None:
    before = batchnorm_state()
    full = after(before)
    difference = state_difference(full, before)
    found, kind = as_difference(before, full)
    assert kind == "state" and float(found["1.num_batches_tracked"]) == 3
    assert all(torch.allclose(found[k].double(), difference[k].double()) for k in difference)
    assert as_difference(before, difference)[1] == "difference"
    # The state of another network is as far away as a difference; who knows better says so.
    other = batchnorm_state(seed=1)
    assert as_difference(before, other)[1] == "difference"
    assert as_difference(before, other, "state")[1] == "state"


def test_withheld_buffers_stay_withheld() -> None:
    before = batchnorm_state()
    bare = {name: value for name, value in after(before).items() if "running" not in name}
    found, kind = as_difference(before, bare)
    assert kind == "state" and found.keys() == bare.keys()
