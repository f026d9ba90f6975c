"""The rows of a write transaction in PostgreSQL: how they are read under the lock of their database's head, and
written before COMMIT.

Law: it runs on the writer's thread. Statements that read tables directly come behind `_write`, which adds what
was changed so far. A transaction that began with a guess at the head must not need to read (`Unread`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from paperdb_trio.store import transaction
from paperdb_trio.store.catalog import CollectionRow
from paperdb_trio.store.postgres.pending import Document, Entry, Savepoint, statements_of
from paperdb_trio.store.postgres.session import Session
from paperdb_trio.store.postgres.wire import Parameter, Row, Statement
from paperdb_trio.store.refusals import database_gone
from paperdb_trio.store.transaction import Remembered


class Unread(Exception):
    """A transaction that was begun with a guess needs to read."""


class Known(NamedTuple):
    """What a node knows of a database since its own last commit. It holds while the head and `catalog`, which
    counts changes of collections and indexes, are the same."""

    head: int
    catalog: int
    collections: dict[str, CollectionRow]


LOCK_HEAD: Final = (
    "SELECT h.head, h.trimmed, h.catalog FROM heads h JOIN databases d ON d.id=h.database_id "
    "WHERE h.database_id=$1 FOR UPDATE OF h"
)


class Rows(transaction.Transaction):
    """What all parts of `Transaction` share."""

    def __init__(
        self,
        session: Session,
        now: float,
        log_time: float,
        *,
        database_id: int | None = None,
        known: Known | None = None,
    ) -> None:
        super().__init__(now, log_time)
        self._session = session
        self._guess = known
        self._locked: dict[int, tuple[int, int, int]] = {}  # head, trimmed, catalog
        self._changed: set[int] = set()  # databases whose catalog was changed
        self._in: dict[int, int] = {}  # the database of each collection
        self._rows: dict[tuple[int, str], CollectionRow | None] = {}
        self._documents: dict[tuple[int, str], tuple[int, int, bytes] | None] = {}
        self._requests: dict[tuple[str, str], Remembered | None] = {}
        self._pending: dict[int, Document | None] = {}  # by row key, what is to be written
        self._marks: dict[Entry, bool] = {}  # entries to be added or removed
        self._held: dict[tuple[int, bytes], frozenset[int]] = {}  # the row keys that have a key in an index
        self._written = False
        self._savepoint: Savepoint | None = None
        if known is not None:
            assert database_id is not None
            self._locked[database_id] = (known.head, -1, known.catalog)
            for name, row in known.collections.items():
                self._rows[database_id, name] = row

    # --- trips -------------------------------------------------------------------------------------

    def _query(self, sql: str, *parameters: Parameter) -> list[Row]:
        if self._guess is not None:
            raise Unread
        return self._session.query(sql, *parameters)

    def _read(self, sql: str, *parameters: Parameter) -> list[Row]:
        """A query that sees what this transaction has changed."""
        if self._guess is not None:
            raise Unread
        self._write()
        return self._session.query(sql, *parameters)

    def _add(self, sql: str, *parameters: Parameter) -> None:
        self._begin_savepoint()
        self._written = True
        self._session.add(sql, *parameters)

    def _change(self, sql: str, *parameters: Parameter) -> list[Row]:
        """A statement that changes rows, with what it returns."""
        self._begin_savepoint()
        self._written = True
        return self._session.query(sql, *parameters)

    def _begin_savepoint(self) -> None:
        """Before a change that is not only in memory."""
        if self._guess is not None:
            raise Unread
        if self._savepoint is not None and not self._savepoint.begun:
            self._write()

    def _lock(self, database_id: int) -> tuple[int, int, int]:
        found = self._locked.get(database_id)
        if found is None:
            rows = self._query(LOCK_HEAD, database_id)
            if not rows:
                raise database_gone()
            (head, trimmed, catalog) = rows[0]
            found = self._locked[database_id] = (head, trimmed, catalog)
        return found

    # --- what is written ---------------------------------------------------------------------------

    def _write(self) -> None:
        """Add the statements for what was changed in memory since the last time."""
        savepoint = self._savepoint
        before: dict[int, Document | None] = {}
        marks: dict[Entry, bool] = {}
        if savepoint is not None and not savepoint.begun:
            before, marks = savepoint.pending, savepoint.marks
            self._session_add(statements_of(before, marks))
            self._session_add([("SAVEPOINT operation", ())])
            savepoint.begun = True
        own = {key: row for key, row in self._pending.items() if key not in before or before[key] is not row}
        entered = {entry: mark for entry, mark in self._marks.items() if marks.get(entry) is not mark}
        self._session_add(statements_of(own, entered))
        self._pending, self._marks = {}, {}
        if savepoint is not None:
            savepoint.pending, savepoint.marks = {}, {}

    def _session_add(self, statements: Iterable[Statement]) -> None:
        for sql, parameters in statements:
            self._written = True
            self._session.add(sql, *parameters)
