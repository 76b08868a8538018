"""The file of the privacy ledger: one SQLite database that is never emptied, nor replaced."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

# Marks a file as a ledger ("GWPL"): an emptied file is a valid database without it, and a ledger
# that forgot everything would allow everything.
_APPLICATION = 0x4757504C
_VERSION = 1
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
CREATE TABLE views (
    image TEXT NOT NULL, view TEXT NOT NULL, rate REAL NOT NULL, parent TEXT,
    PRIMARY KEY (image, view)
) WITHOUT ROWID;
CREATE TABLE releases (release TEXT PRIMARY KEY, epsilon REAL NOT NULL, delta REAL NOT NULL);
"""
# Seconds that a process waits for another one's transaction.
_PATIENCE = 60.0


class LedgerError(RuntimeError):
    """The ledger cannot be used, or contradicts what is to be registered; nothing may leave."""


class LedgerFile:
    """Transactions on a ledger's file, which several processes and threads may share.

    Tables: ``views (image, view, rate, parent)`` and ``releases (release, epsilon, delta)``.

    Args:
        path: created with mode 0600 if missing.

    Raises:
        LedgerError: what is there is damaged or no ledger.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            _create(path)
        with self.transaction() as connection:
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise LedgerError("this site's privacy ledger is damaged; restore it from a backup")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the file alone; commit at the end, roll back at any error.

        Raises:
            LedgerError: for whatever SQLite cannot do.
        """
        # Opened each time anew: a connection must not be shared by threads, nor survive a fork.
        # Mode rw creates no file, so that a ledger removed under way is missed.
        uri = f"{self._path.resolve().as_uri()}?mode=rw"
        try:
            with closing(
                sqlite3.connect(uri, uri=True, timeout=_PATIENCE, isolation_level=None)
            ) as connection:
                connection.execute("BEGIN IMMEDIATE")
                _check_identity(connection)
                # Without a COMMIT, closing rolls back.
                yield connection
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise LedgerError(
                f"this site's privacy ledger cannot be used ({type(error).__name__}); restore it "
                "from a backup"
            ) from None


def _create(path: Path) -> None:
    """Write an empty ledger beside ``path`` and link it there, unless another was faster."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(sqlite3.connect(draft)) as connection:
            connection.executescript(_SCHEMA)
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()


def _check_identity(connection: sqlite3.Connection) -> None:
    found = [
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version")
    ]
    if found != [_APPLICATION, _VERSION]:
        raise LedgerError(
            "this site's privacy ledger is empty or no ledger; restore it from a backup"
        )
