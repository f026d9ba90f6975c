"""The command line's way to databases, keys and signing secrets: it applies an operation to the file itself.

Law: each call is one transaction, and may come from any process while the server runs. The server reads what
changed within a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from paperdb_trio.errors import ApiError, StartupError
from paperdb_trio.files import EXIT_UNWRITABLE
from paperdb_trio.store.operations import Operation
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.file import connect, told
from paperdb_trio.store.sqlite.transaction import Transaction

Result = TypeVar("Result")


def apply(file: Path, operation: Operation[Result], show: Callable[[], None] | None = None) -> Result:
    """Apply an operation of `administration`.

    `show` shows a secret to its owner before the commit: a key that could not be shown is not stored. It
    should print a line or two at most, because it holds the write lock meanwhile. Raises `StartupError`.
    """
    shown = ""
    with closing(connect(file)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            now = time.time()
            result = operation.apply(Transaction(connection, now, now))
            if show is not None:
                show()
                shown = "; the key that was shown is not stored"
            connection.execute("COMMIT")
        except ApiError as error:
            raise StartupError(error.message, 2 if error.status == 400 else 1) from None
        except sqlite.UNAVAILABLE as error:
            raise StartupError(f"Cannot write to {file}: {told(file, error)}{shown}", EXIT_UNWRITABLE) from None
    return result


def read(file: Path, question: Callable[[sqlite.Connection], Result]) -> Result:
    """What one of `records` finds in the file."""
    with closing(connect(file, read_only=True)) as connection:
        return question(connection)


def has_valid_key(file: Path, hash: bytes | None = None) -> bool:
    """Whether any key is valid, or the one with this hash."""

    def ask(connection: sqlite.Connection) -> bool:
        found = connection.execute(
            "SELECT 1 FROM keys WHERE revoked_at IS NULL AND ifnull(expires_at>?1,1) "
            "AND (?2 IS NULL OR hash=?2) LIMIT 1",
            (time.time() * 1000, hash),
        )
        return found.fetchone() is not None

    return read(file, ask)


def is_empty(file: Path) -> bool:
    """Whether this is a first start."""
    return read(file, lambda connection: not connection.execute("SELECT 1 FROM signing_secrets").fetchone())
