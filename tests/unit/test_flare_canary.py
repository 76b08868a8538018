"""Canaries at a site: the same pipeline on public images, and a training that never notices."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import MetaKey, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from torch import nn

from gradward.data import ImageSet, PublicSet, load_public_set
from gradward.defenses.acceptance import Acceptance
from gradward.defenses.ledger import PrivacyLedger
from gradward.defenses.noise import SECRET_FILE
from gradward.defenses.perturbation import SitePerturber
from gradward.flare.canary import (
    CANARY_IMAGES_META,
    CANARY_TASK,
    PinnedImages,
    canary_positions,
    pinned_canaries,
)
from gradward.flare.canary_protocol import CanaryOrder
from gradward.flare.experiment import Experiment
from gradward.flare.gate import LeakageGate
from gradward.flare.guard import JOURNAL, PerturbationGuard
from gradward.flare.perturber import Perturbation
from gradward.flare.perturber_store import LEDGER_FILE
from gradward.flare.seeds import own_randomness
from gradward.flare.states import as_arrays
from gradward.flare.trainer import LocalTrainer
from gradward.flare.update_filters import UpdateNoise, UpdatePruning
from gradward.models.literature import BatchNormCNN
from gradward.training import (
    Batch,
    LocalRun,
    TooFewImages,
    TrainingSettings,
    state_copy,
    train_locally,
)

from .flare_desk import Desk, experiment

# Fitted in a second: what it hides is not the matter here.
QUICK = {"mode": "uniform", "fitted_on": "public", "rate": 1.0, "autoencoder_steps": 3}
PRIVATE_DP = {"epsilon": 8.0, "delta": 0.01, "rounds": 1}
SECRET = bytes(range(32))


class DropoutCNN(nn.Module):
    """A network whose training draws from the process's own generator."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.inner = BatchNormCNN(**arguments, width=4)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images to logits, half of the pixels dropped."""
        logits: torch.Tensor = self.inner(self.drop(images))
        return logits


WITH_DROPOUT = {"model": f"{__name__}:DropoutCNN", "model_options": {}}


@pytest.fixture(scope="module")
def public() -> PublicSet:
    return load_public_set(
        {"format": "embedded"}, name="histology", image_size=(32, 32), channels=3
    )


@pytest.fixture(autouse=True)
def quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept every perturber: the attacker that judges one takes a minute to train."""
    accepted = Acceptance(
        linkage=0.06,
        linkage_bound=0.12,
        gallery=16,
        relative_mse=0.98,
        method="wiener",
        victims=16,
        accepted=True,
    )
    fit = "gradward.defenses.perturbation_fit"
    monkeypatch.setattr(f"{fit}.judge_channel", lambda *rest, **more: accepted)
    # No public image is held out for that attacker: the embedded ones just suffice for a fit.
    monkeypatch.setattr(f"{fit}._ENOUGH_VICTIMS", 1)


@pytest.fixture
def fixed_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws that no other run could repeat become the same in every run."""
    for module in ("local_round", "perturber"):
        monkeypatch.setattr(
            f"gradward.flare.{module}.secret_generator", lambda: torch.Generator().manual_seed(5)
        )


def keep_secret(folder: Path, secret: bytes) -> None:
    folder.mkdir(mode=0o700)
    (folder / SECRET_FILE).write_bytes(secret)
    (folder / SECRET_FILE).chmod(0o600)


class Federation(Desk):
    """A desk that is asked for training and for canaries, and whose filters both pass."""

    def __post_init__(self) -> None:
        self.trainer = LocalTrainer(perturbation_id=next(iter(self.components), None))
        self.filters: list[Filter] = []
        super().__post_init__()
        keep_secret(self.root / "gradward", SECRET)

    def ask(self, task: str, number: int, checksum: str) -> tuple[Shareable, FLContext]:
        """Let the trainer answer, before any filter."""
        weights = as_arrays(state_copy(self.job.build_model()))
        order = CanaryOrder(self.site, number, weights, checksum).to_shareable()
        fl_ctx = self.task(task, f"{task}-{number}")
        return self.trainer.execute(task, order, fl_ctx, Signal()), fl_ctx

    def send(self, task: str, number: int, checksum: str) -> Shareable:
        """Let the trainer answer and the filters see it."""
        reply, fl_ctx = self.ask(task, number, checksum)
        for each in self.filters:
            reply = each.process(reply, fl_ctx)
        return reply


def federation(
    root: Path, filters: Sequence[Filter] = (), perturbation: Any = None, **changes: Any
) -> Federation:
    """A site with its filters; ``changes`` are the experiment's."""
    components = {} if perturbation is None else {"perturbation": Perturbation(perturbation)}
    desk = Federation(root, experiment(**changes), components={**components})
    desk.filters = list(filters)
    return desk


def arrays_of(reply: Shareable) -> dict[str, bytes]:
    assert reply.get_return_code() == ReturnCode.OK
    return {name: value.tobytes() for name, value in from_shareable(reply).data.items()}


# Choosing -----------------------------------------------------------------------------------------


def test_server_and_site_choose_alike_and_each_site_its_own(public: PublicSet) -> None:
    part = public.part("canary")
    first = pinned_canaries(public, 7, "site-1")
    assert torch.equal(first.images, pinned_canaries(public, 7, "site-1").images)
    assert len(first) == len(part) == 9, "the whole part, in an order"
    for image, label in zip(first.images, first.labels, strict=True):
        matches = [(image == other).all() for other in part.images]
        assert sum(matches) == 1 and part.labels[matches.index(True)] == label
    for seed, site in ((8, "site-1"), (7, "site-2")):
        assert not torch.equal(first.images, pinned_canaries(public, seed, site).images)


class Watched:
    """A source that remembers which of its images were asked for, batch by batch."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        self.asked.append(list(indices))
        index = torch.tensor(list(indices), dtype=torch.int64)
        return Batch(self.images.images[index], self.images.labels[index])


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 8},
        {"batch_size": 8, "epochs": 3},
        {"batch_size": 4, "steps": 3},
        {"batch_size": 8, "min_batch_size": 6},
        {"batch_size": 8, "dp_sgd": {"noise_multiplier": 1.0, "delta": 0.01}},
    ],
)
@pytest.mark.parametrize("n_images", [1, 5, 9, 21])
def test_the_number_told_names_the_canaries_behind_an_update(
    public: PublicSet, values: dict[str, Any], n_images: int
) -> None:
    """Whoever draws the batches, and by whatever seed."""
    settings = TrainingSettings.from_dict(values)
    watched = Watched(pinned_canaries(public, 7, "site-1"))

    def train() -> LocalRun:
        return train_locally(
            BatchNormCNN(3, 2, (32, 32), width=4, norm="group"),
            PinnedImages(watched, n_images),
            settings,
            torch.Generator().manual_seed(n_images),
            secret=torch.Generator().manual_seed(3),
        )

    if n_images < settings.min_batch_size:
        with pytest.raises(TooFewImages):
            train()
        return
    run = train()
    told = len(run.images_seen)
    used = [index for batch in watched.asked for index in batch]
    assert set(used) == set(canary_positions(told, len(watched)))
    assert [len(batch) for batch in watched.asked] == [len(batch) for batch in run.batches]
    if settings.dp_sgd is None:
        assert len(run.batches) == settings.number_of_steps(n_images)
        assert told == (min(n_images, 12) if settings.steps else n_images)
    if settings.dp_sgd is None and settings.epochs == 1:
        small = [batch for batch in watched.asked if len(batch) <= len(watched)]
        assert all(len(set(batch)) == len(batch) for batch in small), "no canary twice in a batch"


@pytest.mark.parametrize(
    ("site", "training"),
    [
        ("site-1", {"batch_size": 1}),
        ("site-2", {"batch_size": 8}),
        ("site-3", {"batch_size": 8, "epochs": 2}),
        ("site-4", {"batch_size": 4, "steps": 3}),
    ],
)
def test_a_canary_takes_the_trainings_steps_in_its_batches(
    tmp_path: Path, public: PublicSet, site: str, training: dict[str, Any]
) -> None:
    """Also where the 9 canaries do not suffice for its images."""
    desk = Federation(tmp_path, experiment(training=training | {"lr": 0.02}), site)
    live, canary = (
        from_shareable(desk.ask(task, 0, public.checksum)[0]) for task in ("train", CANARY_TASK)
    )
    steps = MetaKey.NUM_STEPS_CURRENT_ROUND
    assert canary.get_meta_prop(steps) == live.get_meta_prop(steps)
    records = [
        json.loads((tmp_path / "gradward" / "jobs" / "job-1" / folder / "0.json").read_text())
        for folder in ("rounds", "canary/rounds")
    ]
    assert len(records[0]["images"]) == len(records[1]["images"])
    assert canary.get_meta_prop(CANARY_IMAGES_META) == len(records[1]["images"])
    assert {name: v.shape for name, v in canary.data.items()} == {
        name: v.shape for name, v in live.data.items()
    }
    assert any((canary.data[name] != live.data[name]).any() for name in live.data)


# The training never notices -----------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "undefended": {},
    "dropout": WITH_DROPOUT,
    "dual pruning": {"filters": lambda: [UpdatePruning("dual")]},
    "update noise": {"filters": lambda: [UpdateNoise(0.1)]},
    "input noise": {"training": {"batch_size": 8, "lr": 0.02, "input_noise": 0.2}},
    "perturbed": {"perturbation": QUICK, "filters": lambda: [PerturbationGuard()]},
}


def observed(root: Path, case: str, checksum: str, orders: Sequence[tuple[str, int]]) -> object:
    """What somebody sees of a site's training: its updates, its files, its ledger."""
    values = dict(CASES[case])
    make: Callable[[], list[Filter]] = values.pop("filters", list)
    desk = federation(root, make(), **values)
    # As if the process had just started.
    torch.manual_seed(0)
    replies = {(task, n): arrays_of(desk.send(task, n, checksum)) for task, n in orders}
    private = root / "gradward"
    files = {
        str(file.relative_to(private))
        for file in private.rglob("*")
        if file.is_file() and "canary" not in file.relative_to(private).parts
    }
    ledger = private / LEDGER_FILE
    views = PrivacyLedger(ledger).total().views if ledger.is_file() else 0
    updates = {key: value for key, value in replies.items() if key[0] == "train"}
    return updates, files, views


TRAINING = [("train", 0), ("train", 1)]
WITH_CANARIES = [(CANARY_TASK, 0), ("train", 0), ("train", 1), (CANARY_TASK, 1)]


@pytest.mark.parametrize("case", CASES)
def test_a_training_beside_canaries_is_the_same_to_the_bit(
    tmp_path: Path, public: PublicSet, fixed_secrets: None, case: str
) -> None:
    alone = observed(tmp_path / "alone", case, public.checksum, TRAINING)
    beside = observed(tmp_path / "beside", case, public.checksum, WITH_CANARIES)
    assert alone == beside


def shared_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("canary_training", "guard", "update_filter"):
        monkeypatch.setattr(f"gradward.flare.{module}.canary_twin", lambda site: site)


def shared_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gradward.flare.canary_training.own_randomness", lambda *rest: contextlib.nullcontext()
    )


def real_perturber(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_twin(
        self: Perturbation, twin: Any, job: Experiment, public: Any, pinned: Any, fl_ctx: FLContext
    ) -> Any:
        home = replace(twin, private=twin.private.parent)
        return self.open(home, job, pinned, fl_ctx, 0)

    monkeypatch.setattr(Perturbation, "open_twin", open_twin)


@pytest.mark.parametrize(
    ("fault", "case"),
    [
        (shared_generator, "dropout"),
        (shared_folders, "dual pruning"),
        (real_perturber, "perturbed"),
    ],
)
def test_a_planted_fault_would_be_noticed(
    tmp_path: Path,
    public: PublicSet,
    fixed_secrets: None,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
    case: str,
) -> None:
    """By the very comparison of the test above."""
    alone = observed(tmp_path / "alone", case, public.checksum, TRAINING)
    fault(monkeypatch)
    beside = observed(tmp_path / "beside", case, public.checksum, WITH_CANARIES)
    assert alone != beside


@pytest.mark.parametrize("case", ["dropout", "perturbed"])
def test_a_canary_is_the_same_before_and_after_the_training(
    tmp_path: Path, public: PublicSet, fixed_secrets: None, case: str
) -> None:
    found = []
    for name, tasks in (("before", [CANARY_TASK]), ("after", ["train", CANARY_TASK])):
        values = {key: value for key, value in CASES[case].items() if key != "filters"}
        desk = federation(tmp_path / name, **values)
        keep_secret(tmp_path / name / "gradward" / "canary", bytes(32))
        replies = [desk.ask(task, 0, public.checksum)[0] for task in tasks]
        found.append(arrays_of(replies[-1]))
    assert found[0] == found[1]


def test_global_generators_are_given_back() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    undisturbed = [draw(), draw()]
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    first = draw()
    with contextlib.suppress(ZeroDivisionError), own_randomness(9, "cpu"):
        inside = draw()
        raise ZeroDivisionError
    assert [first, draw()] == undisturbed
    with own_randomness(9, "cpu"):
        assert draw() == inside


# Nothing of a patient -----------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every batch that reaches a model in training."""
    batches: list[torch.Tensor] = []

    def remember(model: nn.Module, source: Any, settings: Any, *rest: Any, **more: Any) -> LocalRun:
        class Remembered:
            def __len__(self) -> int:
                return len(source)

            def batch(self, indices: Sequence[int]) -> Batch:
                batch: Batch = source.batch(indices)
                batches.append(batch.images)
                return batch

        return train_locally(model, Remembered(), settings, *rest, **more)

    monkeypatch.setattr("gradward.flare.local_round.train_locally", remember)
    return batches


def test_only_public_images_reach_the_model_and_nothing_is_streamed(
    tmp_path: Path,
    public: PublicSet,
    seen: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streamed: list[Any] = []
    for module in ("trainer", "perturber"):
        monkeypatch.setattr(
            f"gradward.flare.{module}.stream_scalars", lambda *rest: streamed.append(rest)
        )
    desk = federation(tmp_path)
    arrays_of(desk.ask(CANARY_TASK, 0, public.checksum)[0])
    canaries = {image.numpy().tobytes() for image in public.part("canary").images}
    used = {image.numpy().tobytes() for batch in seen for image in batch}
    assert used == canaries, "16 images at site-4, 9 canaries: all of them"
    assert streamed == []
    job_folder = tmp_path / "gradward" / "jobs" / "job-1"
    assert {path.name for path in job_folder.iterdir()} == {"canary"}
    assert {path.name for path in (job_folder / "canary").iterdir()} == {"rounds"}


def test_dp_sgd_pays_nothing_for_canaries(tmp_path: Path, public: PublicSet) -> None:
    """The job's epsilon suffices for one round, and is left to the training."""
    values = {"batch_size": 8, "lr": 0.02, "dp_sgd": PRIVATE_DP}
    desk = federation(tmp_path, training=values, model_options={"width": 4, "norm": "group"})
    for number in range(3):
        arrays_of(desk.ask(CANARY_TASK, number, public.checksum)[0])
    assert not (tmp_path / "gradward" / "jobs" / "job-1" / "dp_sgd.json").exists()
    arrays_of(desk.ask("train", 0, public.checksum)[0])


@pytest.mark.parametrize(
    ("declared", "told"), [(None, "sha256:1"), ("sha256:1", None), ("sha256:1", "sha256:1")]
)
def test_other_public_images_are_no_canaries(
    tmp_path: Path,
    public: PublicSet,
    declared: str | None,
    told: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    desk = federation(tmp_path, public_checksum=declared)
    with caplog.at_level(logging.ERROR):
        reply, _ = desk.ask(CANARY_TASK, 0, told or public.checksum)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "differ between server, site and job" in caplog.text


def test_a_site_that_must_perturb_computes_no_raw_canary(
    tmp_path: Path, public: PublicSet, seen: list[torch.Tensor]
) -> None:
    desk = federation(tmp_path)
    desk.settings(perturbation={"required": True})
    reply, _ = desk.ask(CANARY_TASK, 0, public.checksum)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION and not seen


# The twin of the perturber ------------------------------------------------------------------------


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """Settings and images of every fit."""
    calls: list[tuple[Any, ...]] = []
    fit = SitePerturber.fit.__func__  # type: ignore[attr-defined]

    def counted(cls: Any, settings: Any, images: Any, public: Any, **more: Any) -> SitePerturber:
        calls.append((settings, images, public))
        perturber: SitePerturber = fit(cls, settings, images, public, **more)
        return perturber

    monkeypatch.setattr(SitePerturber, "fit", classmethod(counted))
    yield calls


def test_the_twin_is_fitted_on_public_images_with_the_same_settings(
    tmp_path: Path, public: PublicSet, fits: list[tuple[Any, ...]], seen: list[torch.Tensor]
) -> None:
    desk = federation(tmp_path, perturbation=QUICK | {"fitted_on": "site"})
    arrays_of(desk.ask(CANARY_TASK, 0, public.checksum)[0])
    ((settings, images, fit_images),) = fits
    assert (settings.mode, settings.rate, settings.fitted_on) == ("uniform", 1.0, "public")
    assert torch.equal(images.images, public.part("canary").images)
    assert torch.equal(fit_images.images, public.part("fit").images)
    raw = {image.numpy().tobytes() for image in public.part("canary").images}
    assert not raw & {image.numpy().tobytes() for batch in seen for image in batch}


def test_the_twin_has_secret_and_books_of_its_own(tmp_path: Path, public: PublicSet) -> None:
    desk = federation(tmp_path, perturbation=QUICK)
    for number in range(2):
        arrays_of(desk.ask(CANARY_TASK, number, public.checksum)[0])
    private = tmp_path / "gradward"
    assert not (private / LEDGER_FILE).exists() and not (private / "perturbers").exists()
    assert (private / "canary" / SECRET_FILE).read_bytes() != SECRET
    (books,) = (private / "canary").rglob(LEDGER_FILE)
    assert PrivacyLedger(books).total().views == len(public.part("canary")), "one view each"


def test_another_jobs_twin_is_not_refused_for_the_first_ones_views(
    tmp_path: Path, public: PublicSet
) -> None:
    """Public images need no protection from a second view; patients' have it."""
    desk = federation(tmp_path, perturbation=QUICK)
    arrays_of(desk.ask(CANARY_TASK, 0, public.checksum)[0])
    desk.components["perturbation"] = Perturbation(QUICK | {"rate": 1.5})
    arrays_of(desk.ask(CANARY_TASK, 0, public.checksum)[0])


@pytest.mark.parametrize("limits", [{"max_rate": 0.5}, {"max_views": 0}])
def test_what_a_site_forbids_its_training_it_forbids_its_canaries(
    tmp_path: Path, public: PublicSet, limits: dict[str, float]
) -> None:
    desk = federation(tmp_path, perturbation=QUICK)
    desk.settings(perturbation=limits)
    for task in ("train", CANARY_TASK):
        reply, _ = desk.ask(task, 0, public.checksum)
        assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION


# Filters ------------------------------------------------------------------------------------------


def reason(desk: Federation, reply: Shareable, fl_ctx: FLContext) -> str:
    """Why the guard blocks a reply; fails if it does not."""
    answer = PerturbationGuard().process(reply, fl_ctx)
    assert answer == make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR)
    return str(desk.journal(JOURNAL)[-1]["reason"])


def test_the_guard_lets_a_perturbed_canary_pass_with_its_count(
    tmp_path: Path, public: PublicSet
) -> None:
    desk = federation(tmp_path, [PerturbationGuard(), PerturbationGuard()], QUICK)
    passed = from_shareable(desk.send(CANARY_TASK, 2, public.checksum))
    assert passed.meta == {
        MetaKey.NUM_STEPS_CURRENT_ROUND: 2,
        "perturbation_mode": "uniform",
        "perturbed_samples": 16,
        CANARY_IMAGES_META: 16,
    }
    assert desk.journal(JOURNAL)[-1]["round"] == 2


def test_the_guard_blocks_an_undefended_canary(tmp_path: Path, public: PublicSet) -> None:
    desk = federation(tmp_path)
    reply, fl_ctx = desk.ask(CANARY_TASK, 0, public.checksum)
    assert "16 raw samples" in reason(desk, reply, fl_ctx)


def test_the_guard_confuses_no_canary_with_an_update(tmp_path: Path, public: PublicSet) -> None:
    desk = federation(tmp_path, perturbation=QUICK)
    update, of_update = desk.ask("train", 0, public.checksum)
    canary, of_canary = desk.ask(CANARY_TASK, 0, public.checksum)
    assert "not signed by this site" in reason(desk, update, of_canary)
    assert "entries that are not on the list" in reason(desk, canary, of_update)
    dxo = from_shareable(canary)
    del dxo.meta[CANARY_IMAGES_META]
    assert "not signed by this site" in reason(desk, dxo.to_shareable(), of_update)


@pytest.mark.parametrize("count", [15, True, 16.0, "16", 10**9])
def test_the_guard_blocks_another_count(tmp_path: Path, public: PublicSet, count: Any) -> None:
    desk = federation(tmp_path, perturbation=QUICK)
    reply, fl_ctx = desk.ask(CANARY_TASK, 0, public.checksum)
    dxo = from_shareable(reply)
    dxo.meta[CANARY_IMAGES_META] = count
    assert "canary_images is not what" in reason(desk, dxo.to_shareable(), fl_ctx)


def test_noise_on_canaries_has_a_key_of_its_own(tmp_path: Path, public: PublicSet) -> None:
    """Else a server that had a canary equal to an update could subtract the noise of both."""
    desk = federation(tmp_path)
    raw, as_canary = desk.ask(CANARY_TASK, 0, public.checksum)
    dxo = from_shareable(copy.deepcopy(raw))
    del dxo.meta[CANARY_IMAGES_META]
    noisy = UpdateNoise(0.1).process(raw, as_canary)
    assert from_shareable(noisy).get_meta_prop(CANARY_IMAGES_META) == 16
    as_update = UpdateNoise(0.1).process(dxo.to_shareable(), desk.task("train"))
    assert arrays_of(noisy) != arrays_of(as_update)


def test_the_gate_leaves_canaries_alone(tmp_path: Path, public: PublicSet) -> None:
    desk = federation(tmp_path)
    gate = LeakageGate([{"name": "batchnorm"}], {"evaluations": 5}, {"recovered": 0.0})
    reply, fl_ctx = desk.ask(CANARY_TASK, 0, public.checksum)
    assert gate.process(reply, fl_ctx) is reply
    assert not list(tmp_path.rglob("gate.log"))
