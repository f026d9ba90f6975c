"""Tokens that were ended before their time.

Law: a row is kept while a token that it ends could still be valid. Every process reads new rows within a
second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from paperdb_trio.store.transaction import Transaction

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
        tx.revoke(self.database_id, self.kind, self.name, self.at, self.until)
        return self


@dataclass(frozen=True, slots=True)
class ForgetRevocations:
    """Remove at most `FORGET_ROWS` rows that are no longer needed at `now`, in milliseconds since the epoch.
    Returns whether there may be more."""

    frees: ClassVar = True

    now: int

    def apply(self, tx: Transaction) -> bool:
        return tx.forget_revocations(self.now, FORGET_ROWS) == FORGET_ROWS
