"""Tokens that were ended before their time.

Law: a row is kept while a token that it ends could still be valid. `meta.admin_version` is incremented, so that
every process reads the new rows within a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from paperdb_trio.store.sqlite.transaction import Transaction

FORGET_ROWS: Final = 1000


@dataclass(frozen=True, slots=True)
class Revocation:
    """Of a token by its `jti`, or of all tokens of a `subject` that were issued up to `at`. `at` and `until`,
    when it may be forgotten, are milliseconds since the epoch."""

    database_id: int
    kind: str
    name: str
    at: int
    until: int
    frees: ClassVar = True

    def apply(self, tx: Transaction) -> Revocation:
        tx.connection.execute(
            # A clock that was set back must not take back an earlier revocation.
            "INSERT OR REPLACE INTO revocations (database_id, kind, name, at, until) VALUES (?1,?2,?3,max(?4,"
            "ifnull((SELECT at FROM revocations WHERE (database_id, kind, name)=(?1,?2,?3)),0)),?5)",
            (self.database_id, self.kind, self.name, self.at, self.until),
        )
        tx.connection.execute("UPDATE meta SET value=value+1 WHERE name='admin_version'")
        return self


@dataclass(frozen=True, slots=True)
class ForgetRevocations:
    """Remove at most `FORGET_ROWS` rows that are no longer needed at `now`, in milliseconds since the epoch.
    Returns whether there may be more."""

    frees: ClassVar = True

    now: int

    def apply(self, tx: Transaction) -> bool:
        tx.connection.execute(
            "DELETE FROM revocations WHERE id IN (SELECT id FROM revocations WHERE until<? LIMIT ?)",
            (self.now, FORGET_ROWS),
        )
        return tx.connection.changes() == FORGET_ROWS
