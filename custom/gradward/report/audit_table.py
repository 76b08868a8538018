"""The tables that audits at the desk end with, and what to read beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from gradward.audit import (
    AttackAudit,
    Attempt,
    AuditFacts,
    AuditResult,
    AuditSummary,
    UpdateAudit,
)
from gradward.audit.result import WHAT_COUNTS, WITHOUT_TRUTH
from gradward.report.table import show

_STATISTICS = {
    "seen": "BatchNorm statistics seen",
    "withheld": "BatchNorm statistics withheld",
    "unmoved": "BatchNorm statistics frozen or zeroed",
    "none": "no BatchNorm statistics in this network",
}
_TRAINED = {True: "trained model", False: "fresh model", None: "model trained or not: unknown"}


def audit_table(result: AuditResult) -> Table:
    """One row an attack that ran, the control's figures in brackets; it fits 80 columns."""
    scored = result.prior is not None
    table = _table(("Loss", *(("SSIM", "Recovered", "Gain") if scored else ())))
    for audit in result.attacks:
        if audit.real.status == "ok":
            table.add_row(audit.attack, *_cells(audit, scored))
    return table


def summary_table(summary: AuditSummary) -> Table:
    """Each update with its best attack, or without truths with all of them; it fits 80 columns."""
    scored = _scored(summary)
    table = _table(("SSIM", "Recovered", "Gain") if scored else ("Loss",), "Update")
    table.add_column("Status", no_wrap=True)
    for update in summary.updates:
        rows = _best_row(update) if scored else _loss_rows(update)
        blank = ["-"] * (len(table.columns) - 2)
        for number, cells in enumerate(rows or [blank]):
            name = escape(update.name)
            table.add_row(*((name, *cells, update.status) if number == 0 else ("", *cells)))
    return table


def how_to_read_summary(summary: AuditSummary) -> list[str]:
    """Lines below the table: what was not audited and why, and how to take the figures."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for update in summary.updates:
        if update.status != "ok":
            reasons[update.status, update.reason].append(update.name)
    lines = [f"{_some(names)}: {status}, {why}" for (status, why), names in reasons.items()]
    audited = sum(update.status == "ok" for update in summary.updates)
    lines.append(f"{audited} of {summary.total} updates were audited.")
    return [*lines, WHAT_COUNTS if _scored(summary) else WITHOUT_TRUTH] if audited else lines


def how_to_read_audit(result: AuditResult) -> list[str]:
    """Lines below the table: what did not run, the spread, what is known, the verdict."""
    lines = [
        f"{audit.attack}: {audit.real.status}, {audit.real.reason}"
        for audit in result.attacks
        if audit.real.status != "ok"
    ]
    lines += [_spread(audit) for audit in result.attacks if len(audit.real.restarts) > 1]
    if result.prior is not None and result.mean_image is not None:
        lines.append(
            f"Without the update: SSIM {show(result.prior.ssim)} of the prior, "
            f"{show(result.mean_image.ssim)} of the public mean image."
        )
    lines.append(_known(result.facts))
    return [*lines, *result.facts.notes, result.verdict]


def _table(figures: Sequence[str], *subject: str) -> Table:
    table = Table(
        title="In brackets the control: an update of other images",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for heading in subject:
        table.add_column(heading, overflow="fold")
    table.add_column("Attack", no_wrap=True)
    for heading in ("Evaluations", *figures):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _scored(summary: AuditSummary) -> bool:
    return any(update.result and update.result.best for update in summary.updates)


def _best_row(update: UpdateAudit) -> list[list[str]]:
    best = None if update.result is None else update.result.best
    if update.result is None or best is None:
        return []
    audit = next(audit for audit in update.result.attacks if audit.attack == best.attack)
    return [
        [
            audit.attack,
            str(audit.real.evaluations),
            f"{_ssim(audit.real)} ({_ssim(audit.control)})",
            # The best attack on the control, which had as many tries.
            f"{show(best.recovered)} ({show(best.control)})",
            show(best.gain),
        ]
    ]


def _loss_rows(update: UpdateAudit) -> list[list[str]]:
    attacks = () if update.result is None else update.result.attacks
    return [
        [audit.attack, *_cells(audit, scored=False)]
        for audit in attacks
        if audit.real.status == "ok"
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _cells(audit: AttackAudit, scored: bool) -> list[str]:
    real, control = audit.real, audit.control
    cells = [str(real.evaluations), f"{_loss(real)} ({_loss(control)})"]
    if scored:
        cells += [
            f"{_ssim(real)} ({_ssim(control)})",
            f"{show(real.recovered)} ({show(audit.recovered_by_control)})",
            show(audit.gain),
        ]
    return cells


def _loss(attempt: Attempt | None) -> str:
    return "-" if attempt is None or attempt.loss is None else f"{attempt.loss:.2g}"


def _ssim(attempt: Attempt | None) -> str:
    return show(None if attempt is None or attempt.scores is None else attempt.scores.ssim)


def _spread(audit: AttackAudit) -> str:
    restarts = audit.real.restarts
    losses = [restart.loss for restart in restarts]
    line = f"{audit.attack}: {len(restarts)} starts, loss {min(losses):.2g} to {max(losses):.2g}"
    recovered = [restart.recovered for restart in restarts if restart.recovered is not None]
    if recovered:
        line += f", recovered {show(min(recovered))} to {show(max(recovered))}"
    return line


def _known(facts: AuditFacts) -> str:
    steps = "step" if facts.local_steps == 1 else "steps"
    images = "image" if facts.n_images == 1 else "images"
    return (
        f"The update, read as a {'full state' if facts.update_is == 'state' else 'difference'}: "
        f"{facts.n_images} {images} ({'given' if facts.n_images_given else 'inferred'}), "
        f"{facts.local_steps} local {steps} ({'seen' if facts.local_steps_seen else 'given'}), "
        f"{_STATISTICS[facts.batch_statistics]}, {_TRAINED[facts.trained]}. "
        f"Prior: {facts.prior}. Control: {facts.public}."
    )
