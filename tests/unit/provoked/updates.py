"""In states, networks and attacks, as ``gradward audit`` meets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from gradward import cli_audit
from gradward.attacks import Observation, images_in_update
from gradward.attacks.case import AttackCase
from gradward.attacks.head import last_linear
from gradward.attacks.image_prior import ImagePrior
from gradward.attacks.spool import save_state
from gradward.audit import AuditResult
from gradward.audit.references import check_form
from gradward.defenses.dp_sgd import check_separable
from gradward.models.trainable import check_trainable
from gradward.report.pictures import save_picture
from gradward.state_files import read_state
from gradward.training import TrainingSettings

from ..attack_fixtures import patches
from ..audit_desk import audit, command_line, network, trained_states
from . import gradward, mistake


def audit_of(*flags: str, **options: Any) -> None:
    """Audit one update of the small network, or what is put in its place."""
    before, after = trained_states()
    torch.save(before, "global.pt")
    save_state(Path("update.npz"), after)
    save_picture(Path("picture.png"), patches()[0])
    common = {"model": "bn_cnn", "model-options": '{"width": 8}'}
    common |= {"global": "global.pt", "update": "update.npz"}
    gradward(*command_line({**common, **options}, *flags))


@mistake("…: there is no such file")
def no_file(folder: Path) -> None:
    audit_of(update="nowhere.pt")


@mistake("the control cannot be trained with these settings: …")
def nothing_moves(folder: Path) -> None:
    audit_of(lr=1e-50)


@mistake("…: a state is read from")
def other_ending(folder: Path) -> None:
    Path("state.txt").touch()
    audit_of(update="state.txt")


@mistake("… is damaged or holds Python objects")
def pickled(folder: Path) -> None:
    torch.save({"model": Path()}, "state.pt")
    audit_of(update="state.pt")


@mistake("… cannot be read as …")
def cut(folder: Path) -> None:
    Path("state.npz").write_bytes(b"PK")
    audit_of(update="state.npz")


@mistake("… holds several states")
def several(folder: Path) -> None:
    state = {"a": torch.ones(1)}
    torch.save({"model": state, "ema": state}, "state.pt")
    read_state("state.pt")


@mistake("… holds no state, that is tensors by name")
def no_state(folder: Path) -> None:
    torch.save([1, 2], "state.pt")
    read_state("state.pt")


@mistake("the update is zero in every parameter")
def nothing_trained(folder: Path) -> None:
    model = network()
    zero = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    Observation.from_update(model, model.state_dict(), zero)


@mistake("neither the number of images nor that")
def no_steps(folder: Path) -> None:
    images_in_update(uncounted(), TrainingSettings(), None)


@mistake("the update's number of local steps is none")
def impossible_steps(folder: Path) -> None:
    images_in_update(uncounted(), TrainingSettings(), None, stated_steps=0)


def uncounted() -> Observation:
    """An update of a network without counters."""
    model = nn.Linear(2, 2)
    state = model.state_dict()
    return Observation.from_update(model, state, {k: v + 1 for k, v in state.items()})


@mistake("…; check that both states are of one client's round")
def other_network(folder: Path) -> None:
    audit_of(**{"model-options": '{"width": 16}'})


def audit_in_order(text: str, **options: Any) -> None:
    Path("order.json").write_text(text)
    audit_of(batches="order.json", **options)


@mistake("batches must be a list")
def order_is_flat(folder: Path) -> None:
    audit_in_order("[0, 1]")


@mistake("batches lists … steps")
def order_is_too_long(folder: Path) -> None:
    audit_in_order("[[0], [0]]")


@mistake("step … of batches has")
def order_counts_from_one(folder: Path) -> None:
    audit_in_order("[[1]]")


@mistake("image … is in no step of batches")
def order_leaves_one_out(folder: Path) -> None:
    audit_in_order("[[0]]", images=2)


@mistake("there is no device …")
def no_device(folder: Path) -> None:
    audit_of(device="abacus")


@mistake("one update is attacked by one process")
def too_many_workers(folder: Path) -> None:
    audit_of(workers=2)


@mistake("… is a file; name a folder for the result")
def out_is_a_file(folder: Path) -> None:
    Path("out").touch()
    audit_of()


@mistake("… holds something else than an audit")
def out_is_taken(folder: Path) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").touch()
    audit_of()


@mistake("… is not empty; the results of several updates")
def batch_out_is_taken(folder: Path) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").touch()
    Path("round").mkdir()
    audit_of(update=["update.npz", "again.npz"])


@mistake("updates must be at least one file")
def same_name(folder: Path) -> None:
    audit_of(update=["update.npz", "elsewhere/update.npz"])


@mistake("the folder … holds no updates")
def no_updates(folder: Path) -> None:
    Path("round").mkdir()
    audit_of(update="round")


@mistake("with several updates --truth must hold")
def no_truths(folder: Path) -> None:
    audit_of(update=["update.npz", "again.npz"], truth="truth")


@mistake("the picture that --prior names")
def no_prior(folder: Path) -> None:
    audit_of(prior="nowhere.png")


@mistake("label … is no class of this network")
def other_class(folder: Path) -> None:
    audit_of(labels="7", images=1)


@mistake("labels must be whole numbers")
def real_labels(folder: Path) -> None:
    audit(trained_states(), labels=torch.tensor([1.0]))


@mistake("the truth must be the images behind the update")
def other_truth(folder: Path) -> None:
    Path("truth").mkdir()
    for number in range(2):
        save_picture(Path("truth", f"{number}.png"), patches()[number])
    audit_of(truth="truth", images=1)


@mistake("… cannot be written")
def out_below_a_file(folder: Path) -> None:
    audit_of(out="update.npz/out")


@mistake("--attack-options names")
def options_of_no_attack(folder: Path) -> None:
    audit_of(**{"attack-options": '{"matching": {}}'})


@mistake("--attack-options must give")
def options_without_names(folder: Path) -> None:
    audit_of(**{"attack-options": '{"features": "random"}'})


@mistake("the labels are not known")
def labels_lack(folder: Path) -> None:
    case = AttackCase(
        uncounted(), TrainingSettings(), patches()[0], 2, [[0, 1]], None, no_labels_because="…"
    )
    case.known_labels()


@mistake("labels must be one for each image")
def few_labels(folder: Path) -> None:
    audit_of(labels="0,1", images=1)


@mistake("… must be class indices like")
def no_labels(folder: Path) -> None:
    audit_of(labels="cat")


@mistake("stopped; nothing was written")
def stopped(folder: Path) -> None:
    with patch.object(cli_audit, "audit_update", side_effect=KeyboardInterrupt):
        audit_of()


@mistake("stopped; … of")
def batch_stopped(folder: Path) -> None:
    with patch.object(cli_audit, "audit_updates", side_effect=KeyboardInterrupt):
        audit_of(update=["update.npz", "again.npz"])


@mistake("… has … at …, which mixes")
def batch_norm(folder: Path) -> None:
    check_separable(network())


@mistake("… cannot train on")
def too_small(folder: Path) -> None:
    check_trainable(_flat(), (1, 1), 3, 1)


@mistake("a learned prior needs at least")
def no_lesson(folder: Path) -> None:
    ImagePrior(patches()[0], patches()[:1])


@mistake("the model has no linear layer at its end")
def no_head(folder: Path) -> None:
    last_linear(nn.Sequential(nn.Conv2d(3, 2, 3)), patches()[0])


@mistake("the last linear layer … gives")
def no_logits(folder: Path) -> None:
    per_pixel = nn.Sequential(nn.Flatten(2), nn.Linear(1024, 5), nn.Flatten(), nn.Softmax(1))
    last_linear(per_pixel, patches()[0])


def _flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 2), nn.BatchNorm1d(2))


@mistake("the public images must be")
def public_of_another_form(folder: Path) -> None:
    check_form("the public images", patches()[:2], (3, 64, 64))


@mistake("this is no audit.json of an audit")
def no_audit(folder: Path) -> None:
    AuditResult.from_json("{}")
