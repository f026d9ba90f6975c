"""The command line's way to a PostgreSQL store: it applies operations, and reads what administrators see.

Law: each call is one transaction, and may come from any machine while servers run. They read what changed
within a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from paperdb_trio.errors import ApiError, StartupError
from paperdb_trio.store.operations import Operation
from paperdb_trio.store.postgres import records
from paperdb_trio.store.postgres.prepare import check_wakes, prepare, unavailable
from paperdb_trio.store.postgres.records import Asked
from paperdb_trio.store.postgres.schema import START_LOCK
from paperdb_trio.store.postgres.session import Session
from paperdb_trio.store.postgres.transaction import Transaction
from paperdb_trio.store.postgres.wire import ConnectionLost, ServerError

__all__ = (
    "apply",
    "await_turn",
    "check_wakes",
    "has_valid_key",
    "is_empty",
    "prepare",
    "read",
    "records",
)

Result = TypeVar("Result")


def apply(url: str, operation: Operation[Result], show: Callable[[], None] | None = None) -> Result:
    """Apply an operation of `administration`.

    `show` shows a secret to its owner before the commit: a key that could not be shown is not stored. Raises
    `StartupError`.
    """
    shown = ""
    with closing(prepare(url)) as session:
        try:
            now = time.time()
            tx = Transaction(session, now, now)
            tx.begin()
            result = operation.apply(tx)
            _, statements = tx.finish()
            session.run([*session.take(), *statements])
            if show is not None:
                show()
                shown = "; the key that was shown is not stored"
            session.run([("COMMIT", ())])
        except ApiError as error:
            raise StartupError(error.message, 2 if error.status == 400 else 1) from None
        except (ServerError, ConnectionLost) as error:
            raise unavailable(f"PostgreSQL refused this{shown}", error) from None
    return result


def read(url: str, asked: Asked[Result]) -> Result:
    """What one of `records` finds."""
    with closing(prepare(url)) as session:
        try:
            return asked.made(session.query(asked.sql, *asked.parameters))
        except (ServerError, ConnectionLost) as error:
            raise unavailable("PostgreSQL refused this", error) from None


def has_valid_key(url: str, hash: bytes | None = None) -> bool:
    """Whether any key is valid, or the one with this hash."""
    return read(
        url,
        Asked(
            "SELECT 1 FROM keys WHERE revoked_at IS NULL AND coalesce(expires_at>$1::bigint, TRUE) "
            "AND ($2::bytea IS NULL OR hash=$2) LIMIT 1",
            (int(time.time() * 1000), hash),
            bool,
        ),
    )


def await_turn(session: Session) -> None:
    """Return when no other node is at its first start; no other begins before this session is closed."""
    session.query("SELECT pg_advisory_lock($1::bigint)", START_LOCK)


def is_empty(url: str) -> bool:
    """Whether this is a first start."""
    return read(url, Asked("SELECT 1 FROM signing_secrets LIMIT 1", (), lambda rows: not rows))
