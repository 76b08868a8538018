"""What a site or a server still lacks, found by looking at its startup kit and this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradward.flare.doctor import machine, policy
from gradward.flare.doctor.findings import ATTENTION, OK, PROBLEM, Finding, Kit, KitProblem, table

__all__ = ["ATTENTION", "OK", "PROBLEM", "Finding", "examine", "table"]

_CHECKS = (
    policy.policies,
    policy.allow_list,
    policy.own_code,
    policy.privacy,
    policy.restart,
    policy.logs,
    policy.private_folder,
)


def examine(folder: Path | None) -> list[Finding]:
    """Look at the kit in ``folder``, or without one at this machine alone. Changes nothing."""
    with _quiet():
        findings = [machine.packages()]
        if folder is None:
            return [*findings, machine.devices({}, {}), *machine.data_sets({}, "", "server")]
        try:
            kit = Kit.open(folder)
        except KitProblem as problem:
            return [*findings, problem.finding]
        for check in _CHECKS:
            findings += check(kit)
        findings.append(machine.devices(kit.settings, kit.resources))
        findings += machine.audit_devices(kit.settings)
        return findings + machine.data_sets(kit.settings.get("data", {}), kit.name, kit.role)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep NVFlare's log lines, which say less than the findings, out of the table."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
