"""The site's privacy ledger, under the limits of the site's own policy."""

from __future__ import annotations

from pathlib import Path

from gradward.defenses.ledger import PrivacyLedger
from gradward.flare.site import Site

LEDGER_FILE = "ledger.sqlite"


def open_ledger(site: Site, folder: Path | None = None) -> PrivacyLedger:
    """Open a ledger under the site's limits.

    Args:
        site: whose limits hold.
        folder: where it lies; None for the one that the site keeps over all jobs.

    Raises:
        LedgerError: it cannot be used.
    """
    policy = site.perturbation
    return PrivacyLedger(
        (folder or site.private) / LEDGER_FILE,
        max_views=policy.max_views,
        max_rate=policy.max_rate,
        max_epsilon=policy.max_epsilon,
        max_delta=policy.max_delta,
    )
