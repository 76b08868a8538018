"""What a site has given away of each image and of all patients, over all jobs."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradward.defenses.ledger_file import LedgerError, LedgerFile

# A budget of 5 nats must not refuse gates whose rate float32 sums up to 5.0000005.
_ROUNDING = 1e-6


class BudgetExceeded(LedgerError):
    """What was to be registered is past the site's budget; nothing of it was written."""


@dataclass(frozen=True)
class View:
    """One registered view of an image.

    Attributes:
        view_id: what identifies it, such as the perturber's version and purpose.
        rate: in nats.
        parent: the view it was degraded from, or None where it was made from the image.
    """

    view_id: str
    rate: float
    parent: str | None


@dataclass(frozen=True)
class LedgerTotal:
    """All that was spent.

    Attributes:
        images: images with at least one view.
        views: views, degraded ones included.
        rate: nats spent on the image that most was spent on.
        epsilon: summed over all differentially private releases.
        delta: likewise.
    """

    images: int
    views: int
    rate: float
    epsilon: float
    delta: float


class PrivacyLedger:
    """Adds up views and releases in one file, and refuses what goes past the budget.

    Register first, hand out afterwards: a crash in between costs budget, never privacy. Several
    processes and threads may share the file. Views add up by the sum of their rates, releases by
    basic composition; the two are kept apart, as one does not bound the other.

    Args:
        file: in the site's private root; created with mode 0600 if missing.
        max_views: views made from one image, degraded ones not counted.
        max_rate: nats that the views made from one image may tell together; None is no limit.
        max_epsilon: sum over all releases; None is no limit.
        max_delta: likewise.

    Raises:
        ValueError: a limit that is negative or not a number.
        LedgerError: the file is damaged or no ledger. It is never replaced.
    """

    def __init__(
        self,
        file: Path,
        max_views: int = 1,
        max_rate: float | None = None,
        max_epsilon: float | None = None,
        max_delta: float | None = None,
    ) -> None:
        if isinstance(max_views, bool) or not isinstance(max_views, int) or max_views < 0:
            raise ValueError(f"max_views must be a whole number from 0 on, got {max_views!r}")
        for name, limit in (
            ("max_rate", max_rate),
            ("max_epsilon", max_epsilon),
            ("max_delta", max_delta),
        ):
            if limit is not None:
                _check_amount(name, limit)
        self.max_views = max_views
        self.max_rate = max_rate
        self.max_epsilon = max_epsilon
        self.max_delta = max_delta
        self._file = LedgerFile(Path(file))

    def register_view(
        self, image_key: str, view_id: str, rate: float, *, parent: str | None = None
    ) -> None:
        """Register one view of one image; see :meth:`register_views`."""
        self.register_views([image_key], view_id, rate, parent=parent)

    def register_views(
        self, image_keys: Sequence[str], view_id: str, rate: float, *, parent: str | None = None
    ) -> None:
        """Register the same kind of view for many images, for all of them or for none.

        What is registered already costs nothing again. A view with a ``parent`` was made from that
        view alone and costs nothing either; any other new one counts against the budget.

        Args:
            image_keys: as :meth:`gradward.defenses.noise.FrozenNoise.key` names images.
            view_id: the same for the same gates and the same noise, and only then.
            rate: of one view, in nats.
            parent: ``view_id`` of the view it was degraded from.

        Raises:
            ValueError: a rate that is negative or not finite.
            BudgetExceeded: an image would get more views, or more nats, than the site allows.
            LedgerError: the parent is not registered or tells less than its child, the view is
                registered with another rate or parent, or the ledger cannot be used.
        """
        _check_amount("rate", rate)
        with self._file.transaction() as connection:
            refused = 0
            for key in dict.fromkeys(image_keys):
                known = {view.view_id: view for view in _views(connection, key)}
                if view_id in known:
                    self._check_same(known[view_id], rate, parent)
                    continue
                if parent is None:
                    refused += not self._affordable([*known.values()], rate)
                elif parent not in known or rate > known[parent].rate * (1 + _ROUNDING):
                    raise LedgerError(
                        "a degraded view needs a registered parent that tells no less than it"
                    )
                connection.execute(
                    "INSERT INTO views VALUES (?, ?, ?, ?)", (key, view_id, rate, parent)
                )
            if refused:
                raise BudgetExceeded(
                    f"another view of {refused} of {len(image_keys)} images is past this site's "
                    f"budget ({self.max_views} views and {_limit(self.max_rate)} nats an image, "
                    "over all jobs); keep the perturber that made the first view, or degrade it"
                )

    def register_release(self, release_id: str, epsilon: float, delta: float) -> None:
        """Register one differentially private release; the same id again costs nothing.

        Args:
            release_id: names the released statistic, so that another one has another id.
            epsilon: of the release by itself, not negative.
            delta: likewise.

        Raises:
            ValueError: epsilon or delta is negative or not finite.
            BudgetExceeded: the sum over all releases would pass the site's limits.
            LedgerError: the id is registered with other figures, or the ledger cannot be used.
        """
        _check_amount("epsilon", epsilon)
        _check_amount("delta", delta)
        with self._file.transaction() as connection:
            spent = {
                name: figures
                for name, *figures in connection.execute(
                    "SELECT release, epsilon, delta FROM releases"
                )
            }
            if release_id in spent:
                if not all(map(math.isclose, spent[release_id], (epsilon, delta))):
                    raise LedgerError("this release is registered with another epsilon or delta")
                return
            connection.execute(
                "INSERT INTO releases VALUES (?, ?, ?)", (release_id, epsilon, delta)
            )
            epsilons, deltas = zip(*spent.values(), (epsilon, delta), strict=True)
            total_epsilon, total_delta = math.fsum(epsilons), math.fsum(deltas)
            if _beyond(total_epsilon, self.max_epsilon) or _beyond(total_delta, self.max_delta):
                raise BudgetExceeded(
                    f"with this release the site would have spent epsilon {total_epsilon:.4g} and "
                    f"delta {total_delta:.4g}; it allows {_limit(self.max_epsilon)} and "
                    f"{_limit(self.max_delta)} over all jobs"
                )

    def views(self, image_key: str) -> list[View]:
        """Return what is registered of one image.

        Raises:
            LedgerError: the ledger cannot be used.
        """
        with self._file.transaction() as connection:
            return _views(connection, image_key)

    def total(self) -> LedgerTotal:
        """Return what was spent in all.

        Raises:
            LedgerError: the ledger cannot be used.
        """
        with self._file.transaction() as connection:
            images, views = connection.execute(
                "SELECT COUNT(DISTINCT image), COUNT(*) FROM views"
            ).fetchone()
            (rate,) = connection.execute(
                "SELECT COALESCE(MAX(spent), 0.0) FROM "
                "(SELECT SUM(rate) AS spent FROM views WHERE parent IS NULL GROUP BY image)"
            ).fetchone()
            epsilon, delta = connection.execute(
                "SELECT TOTAL(epsilon), TOTAL(delta) FROM releases"
            ).fetchone()
        return LedgerTotal(images, views, rate, epsilon, delta)

    def _affordable(self, known: list[View], rate: float) -> bool:
        rates = [view.rate for view in known if view.parent is None]
        return len(rates) < self.max_views and not _beyond(math.fsum([*rates, rate]), self.max_rate)

    @staticmethod
    def _check_same(view: View, rate: float, parent: str | None) -> None:
        if parent != view.parent or not math.isclose(rate, view.rate, rel_tol=_ROUNDING):
            raise LedgerError("this view is registered with another rate or another parent")


def _views(connection: sqlite3.Connection, image_key: str) -> list[View]:
    rows = connection.execute("SELECT view, rate, parent FROM views WHERE image = ?", (image_key,))
    return [View(*row) for row in rows]


def _beyond(amount: float, limit: float | None) -> bool:
    return limit is not None and amount > limit * (1 + _ROUNDING)


def _limit(limit: float | None) -> str:
    return "unlimited" if limit is None else f"{limit:.4g}"


def _check_amount(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {value}")
