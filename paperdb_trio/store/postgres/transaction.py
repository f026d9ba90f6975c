"""A write transaction in PostgreSQL: its beginning, its end, and its savepoints.

Law: what operations need is read ahead, in one round trip (`read_ahead`); anything else costs one of its own. A
guess at the head (`Known`) saves even the first one: the transaction then writes only if the guess holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from paperdb_trio.store.postgres.catalog import COLLECTIONS, Catalog, collection_row
from paperdb_trio.store.postgres.documents import Documents
from paperdb_trio.store.postgres.log_rows import REQUESTS, Log, remembered
from paperdb_trio.store.postgres.pending import Savepoint, statements_of
from paperdb_trio.store.postgres.registry import Registry
from paperdb_trio.store.postgres.rows import LOCK_HEAD, Known
from paperdb_trio.store.postgres.wire import Ints, Statement, Texts

_DOCUMENTS: Final = (
    "SELECT c.name, d.id, d.rowkey, d.seq, d.data FROM unnest($2::text[],$3::text[]) u(name, id) "
    "JOIN collections c ON c.database_id=$1 AND c.name=u.name "
    "CROSS JOIN LATERAL "  # see reader.py
    "(SELECT id, rowkey, seq, data FROM documents WHERE collection_id=c.id AND id=u.id OFFSET 0) d"
)


class Needs(NamedTuple):
    """What the operations of a batch are going to read: collections, documents `(collection, id)`, and
    remembered requests `(scope, key)`."""

    collections: list[str]
    documents: list[tuple[str, str]]
    requests: list[tuple[str, str]]


class Transaction(Documents, Catalog, Log, Registry):
    """`database_id`: the one database that it writes to, if it is known. With `known`, it begins with a
    guess."""

    def read_ahead(self, database_id: int, needs: Needs) -> None:
        """Begin, lock the head, and then read what operations need, in one trip. (A statement that both locks
        and reads would see what was there before it had to wait.)"""
        names = sorted({*needs.collections, *(name for name, _ in needs.documents)})
        statements: list[Statement] = [("BEGIN", ()), (LOCK_HEAD, (database_id,))]
        statements.append((COLLECTIONS, (database_id, Texts(names))))
        if needs.documents:
            of, ids = zip(*needs.documents, strict=True)
            statements.append((_DOCUMENTS, (database_id, Texts(of), Texts(ids))))
        if needs.requests:
            scopes, keys = zip(*needs.requests, strict=True)
            statements.append((REQUESTS, (Texts(scopes), Texts(keys))))
        _, heads, collections, *rest = self._session.run(statements)
        if not heads:
            return  # it was deleted: each operation is told so
        (head, trimmed, catalog) = heads[0]
        self._locked[database_id] = (head, trimmed, catalog)
        by_name = {row[4].decode(): collection_row(row) for row in collections}
        for name in names:
            self._rows[database_id, name] = by_name.get(name)
        if needs.documents:
            for name, id in needs.documents:
                if (row := by_name.get(name)) is not None:
                    self._documents[row.id, id] = None
            for name, id, rowkey, seq, data in rest[0]:
                self._documents[by_name[name.decode()].id, id.decode()] = (rowkey, seq, data)
        if needs.requests:
            for request in needs.requests:
                self._requests[request] = None
            for scope, key, *fields in rest[-1]:
                self._requests[scope.decode(), key.decode()] = remembered(fields)

    def begin(self) -> None:
        """Without a database: for the store's own work."""
        self._session.add("BEGIN")

    def finish(self, writer: bytes | None = None, batch: int = 0) -> tuple[bool, list[Statement]]:
        """The statements that end the transaction; and whether it writes anything. `writer`: whose row keeps
        the number of this batch."""
        statements = statements_of(self._pending, self._marks)
        at = int(self.log_time * 1000)
        changes = self.changes
        if changes:
            statements.append(
                (
                    "INSERT INTO changes (database_id, seq, at, size, type, collection, data, id, before, txn) "
                    "SELECT u.database_id, u.seq, $1, u.size, u.type, u.collection, u.data, u.id, u.before, "
                    "u.txn FROM unnest($2::bigint[],$3::bigint[],$4::bigint[],$5::text[],$6::text[],$7::text[],"
                    "$8::text[],$9::text[],$10::bigint[]) "
                    "u(database_id, seq, size, type, collection, data, id, before, txn)",
                    (
                        at,
                        Ints([c.database_id for c in changes]),
                        Ints([c.seq for c in changes]),
                        Ints([len(c.data) + len(c.before or b"") for c in changes]),
                        Texts([c.type for c in changes]),
                        Texts([c.collection for c in changes]),
                        Texts([c.data for c in changes]),
                        Texts([c.id for c in changes]),
                        Texts([c.before for c in changes]),
                        Ints([c.txn for c in changes]),
                    ),
                )
            )
        counted = [(id, delta) for id, delta in self._counts.items() if id in self._newest]
        if counted:
            statements.append(
                (
                    "UPDATE counts n SET documents=documents+u.delta, newest=u.newest "
                    "FROM unnest($1::bigint[],$2::bigint[],$3::text[]) u(id, delta, newest) "
                    "WHERE n.collection_id=u.id",
                    (
                        Ints([id for id, _ in counted]),
                        Ints([delta for _, delta in counted]),
                        Texts([self._newest[id] for id, _ in counted]),
                    ),
                )
            )
        heads: list[Statement] = []
        for database_id in self._locked if self._guess is not None else {*self._heads, *self._changed}:
            (old, _, catalog) = self._locked[database_id]
            head = self._heads.get(database_id, old)
            if self._guess is not None:
                heads.append(
                    (
                        "WITH h AS (UPDATE heads SET head=$2 WHERE database_id=$1 AND head=$3 AND catalog=$4 "
                        "RETURNING 1) SELECT 1/count(*) FROM h",
                        (database_id, head, old, catalog),
                    )
                )
            elif head != old or database_id in self._changed:
                more = int(database_id in self._changed)
                statements.append(
                    (
                        "UPDATE heads SET head=$2, catalog=catalog+$3 WHERE database_id=$1",
                        (database_id, head, more),
                    )
                )
        if not (statements or heads or self._written):
            return False, []
        if writer is None:
            return True, [*heads, *statements]
        # If the writer's row is gone, another session of this node has looked up what became of its last batch,
        # and was told that it is not there: so it must never be.
        statements.append(
            (
                "WITH w AS (UPDATE writers SET batch=$2, at=now() WHERE id=$1 RETURNING 1) "
                "SELECT 1/count(*) FROM w",
                (writer, batch),
            )
        )
        return True, [*heads, *statements]

    def known(self, database_id: int) -> Known | None:
        """What is known once this transaction is committed."""
        if database_id in self._changed or database_id not in self._locked:
            return None
        old, _, catalog = self._locked[database_id]
        collections = {} if self._guess is None else self._guess.collections
        for (of, name), row in self._rows.items():
            if of == database_id and row is not None:
                collections[name] = row._replace(newest=self._newest.get(row.id, row.newest))
        return Known(self._heads.get(database_id, old), catalog, collections)

    @contextmanager
    def _rows_savepoint(self) -> Iterator[None]:
        """Only when something is read from the tables meanwhile, a SAVEPOINT is needed, too."""
        outer = self._savepoint
        if outer is not None:
            self._write()  # so that the outer one has begun: the inner one needs a name of its own
        own = self._savepoint = Savepoint(self._pending.copy(), self._marks.copy())
        documents, held, requests = self._documents.copy(), self._held.copy(), self._requests.copy()
        changed, rows = self._changed.copy(), self._rows.copy()
        try:
            yield
        except BaseException:
            self._documents, self._held, self._requests = documents, held, requests
            self._changed, self._rows = changed, rows
            if own.begun:
                self._pending, self._marks = {}, {}
                self._session.add("ROLLBACK TO operation")
                self._session.add("RELEASE operation")
            else:
                self._pending, self._marks = own.pending, own.marks
            raise
        else:
            if own.begun:
                self._session.add("RELEASE operation")
        finally:
            self._savepoint = outer
