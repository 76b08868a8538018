"""Several updates of one round, audited side by side in worker processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from gradward.attacks import AttackSpec, Budget
from gradward.audit.facts import AuditError
from gradward.audit.folder import check_batch_folder
from gradward.audit.result import AuditResult
from gradward.audit.summary import FILE_NAME, AuditSummary, UpdateAudit
from gradward.audit.update import audit_update, chosen_attacks
from gradward.audit.workers import devices_of_workers, run_in_workers
from gradward.data import ImageSet
from gradward.data.folder import read_folder
from gradward.data.form import ImageForm
from gradward.state_files import UpdateIs, read_state
from gradward.training import State, TrainingSettings

# Called with an update that is finished, how many are, and how many there are.
BatchProgress = Callable[[UpdateAudit, int, int], None]


def audit_updates(
    model: nn.Module,
    global_file: Path | str,
    updates: Sequence[Path | str],
    folder: Path | str,
    *,
    image_shape: tuple[int, int, int],
    settings: TrainingSettings,
    n_images: int | None = None,
    prior: Tensor | None = None,
    labels: Tensor | None = None,
    batches: Sequence[Sequence[int]] | None = None,
    truths: Mapping[str, Tensor | Path | str] | None = None,
    public: ImageSet | None = None,
    attacks: Sequence[AttackSpec] | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    workers: int | None = None,
    devices: Sequence[str] = ("cpu",),
    progress: BatchProgress | None = None,
    update_is: UpdateIs = "auto",
    model_name: str | None = None,
) -> AuditSummary:
    """Tell what a server could rebuild from each of several updates of one round.

    Each update has a folder of its own in ``folder``, as :func:`gradward.audit.folder.save_audit`
    writes it, named after the update's file without its ending; ``summary.json`` beside them is
    kept up to date. An update that is rejected or fails does not stop the others.

    Worker processes import the calling script: call this below ``if __name__ == "__main__":``. A
    worker reads one update at a time, so that no more than ``workers`` are in memory, and computes
    with one thread. With a budget of evaluations and devices of one kind the result depends neither
    on the number of workers nor on what else is audited.

    Args:
        model: as of :func:`gradward.audit.audit_update`; its class must be at the top level of a
            module.
        global_file: where all clients started, see :func:`gradward.state_files.read_state`.
        updates: files, as the global one; what came back.
        folder: new or empty.
        image_shape, settings, n_images, prior, labels, batches, public, attacks, budget, seed,
            update_is, model_name: of each update, as of :func:`gradward.audit.audit_update`.
        truths: the images behind each update by its name, ``(m, C, H, W)`` in [0, 1] or a folder of
            image files; None measures nothing.
        workers: processes, each with an update of its own; None takes one a device.
        devices: where the workers compute, one after the other.
        progress: called in this process with each update that is finished.

    Returns:
        Every update, in the order given.

    Raises:
        AuditError: no updates, two of one name, an update without a truth where there are truths, a
            device that is not there, a folder that is not empty, or a network that worker
            processes cannot load.
        StateFileError: the global state cannot be read.
    """
    files = {Path(file).stem: Path(file).absolute() for file in updates}
    if not files or len(files) < len(updates) or FILE_NAME in files:
        raise AuditError(
            "updates must be at least one file, and each needs a name of its own, without its "
            f"ending, got {[Path(file).name for file in updates]}"
        )
    placed = devices_of_workers(workers, devices)
    into = Path(folder).absolute()
    check_batch_folder(into)
    # Here only to say at once that it cannot be read.
    read_state(global_file)
    batch = _Batch(
        model=model,
        global_file=Path(global_file).absolute(),
        folder=into,
        told={
            "image_shape": image_shape,
            "settings": settings,
            "n_images": n_images,
            "prior": prior,
            "labels": labels,
            "batches": batches,
            "public": public,
            "attacks": chosen_attacks(attacks),
            "budget": budget,
            "seed": seed,
            "update_is": update_is,
            "model_name": model_name,
        },
    )
    tasks = [_Task(name, file, _truth_of(name, truths)) for name, file in files.items()]
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    finished: dict[str, UpdateAudit] = {}
    summary = AuditSummary((), len(tasks))
    try:
        with closing(run_in_workers(batch.audit, tasks, placed)) as replies:
            for task, reply in replies:
                finished[task.name] = _finish(task, reply, into)
                in_order = (finished[name] for name in files if name in finished)
                summary = AuditSummary(tuple(in_order), len(tasks))
                summary.save(into)
                if progress is not None:
                    progress(finished[task.name], len(finished), len(tasks))
    finally:
        # What a worker was writing when it was ended.
        for name in files:
            shutil.rmtree(_unfinished(into, name), ignore_errors=True)
    return summary


@dataclass(frozen=True)
class _Task:
    name: str
    file: Path
    truth: Tensor | Path | None


@dataclass(frozen=True)
class _Reply:
    """What a worker tells; the pictures are in the folder that it wrote."""

    status: Literal["ok", "rejected", "failed"]
    reason: str = ""
    json: str | None = None


@dataclass
class _Batch:
    """What is the same for all updates; a worker reads the global state once."""

    model: nn.Module
    global_file: Path
    folder: Path
    told: Mapping[str, Any]

    @cached_property
    def global_state(self) -> State:
        return read_state(self.global_file)

    def audit(self, task: _Task, device: str) -> _Reply:
        """Audit one update in a worker and write its folder under a name that says unfinished."""
        try:
            result = audit_update(
                self.model,
                self.global_state,
                read_state(task.file),
                truth=self._truth(task),
                device=device,
                **self.told,
            )
            result.save(_unfinished(self.folder, task.name))
        except ValueError as error:
            return _Reply("rejected", str(error))
        except Exception as error:
            return _Reply("failed", f"{type(error).__name__}: {error}")
        return _Reply("ok", json=result.to_json())

    def _truth(self, task: _Task) -> Tensor | None:
        if not isinstance(task.truth, Path):
            return task.truth
        channels, height, width = self.told["image_shape"]
        return read_folder(task.truth, ImageForm((height, width), channels), "the truth")


def _finish(task: _Task, reply: _Reply | None, folder: Path) -> UpdateAudit:
    if reply is None:
        reason = "its worker process died; the memory may have been too small for it"
        return UpdateAudit(task.name, "failed", reason)
    if reply.json is None:
        return UpdateAudit(task.name, reply.status, reply.reason)
    _unfinished(folder, task.name).rename(folder / task.name)
    return UpdateAudit(task.name, reply.status, reply.reason, AuditResult.from_json(reply.json))


def _unfinished(folder: Path, name: str) -> Path:
    return folder / f".{name}.unfinished"


def _truth_of(name: str, truths: Mapping[str, Tensor | Path | str] | None) -> Tensor | Path | None:
    if truths is None:
        return None
    if name not in truths:
        raise AuditError(f"there is no truth of the update {name!r}; give one of each, or none")
    truth = truths[name]
    return truth if isinstance(truth, Tensor) else Path(truth).absolute()
