"""The table that an audit of one update ends with, and what to read beside it."""

from __future__ import annotations

from rich import box
from rich.table import Table

from gradward.audit import AttackAudit, Attempt, AuditFacts, AuditResult
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
    table = Table(
        title="In brackets the control: an update of other images",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("Attack", no_wrap=True)
    for heading in ("Evaluations", "Loss", *(("SSIM", "Recovered", "Gain") if scored else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for audit in result.attacks:
        if audit.real.status == "ok":
            table.add_row(audit.attack, *_cells(audit, scored))
    return table


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
