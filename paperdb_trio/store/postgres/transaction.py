"""The rows of a write transaction in PostgreSQL: read under the lock of their database's head, changed in
memory, written by a few statements before COMMIT.

Law: it runs on the writer's thread. What operations need is read ahead, in one round trip (`read_ahead`);
anything else costs a trip of its own. Statements that read tables directly come behind `_write`, which adds
what was changed so far. A guess at the head (`Known`) saves even the first trip: the transaction then writes
only if the guess holds, and must not need to read (`Unread`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from paperdb_trio.json_input import decode
from paperdb_trio.model import encode
from paperdb_trio.store import transaction
from paperdb_trio.store.catalog import AT_ONCE_BYTES, CollectionRow, Value
from paperdb_trio.store.indexes import Index, kind, parse_field
from paperdb_trio.store.keys import interval, inverted, part, point
from paperdb_trio.store.postgres.keys import intervals, stored
from paperdb_trio.store.postgres.registry import Registry
from paperdb_trio.store.postgres.session import Session
from paperdb_trio.store.postgres.wire import Blobs, Ints, Parameter, Row, Statement, Texts
from paperdb_trio.store.query import ask
from paperdb_trio.store.refusals import database_gone
from paperdb_trio.store.rowkeys import SEQ_BITS, SEQ_MASK, span
from paperdb_trio.store.transaction import Remembered, Taken

Entry = tuple[int, bytes, int]


class Unread(Exception):
    """A transaction that was begun with a guess needs to read."""


class Document(NamedTuple):
    id: str
    seq: int
    data: bytes


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
_COLLECTIONS: Final = (
    "SELECT c.id, c.schema, c.indexes, n.newest, c.name FROM unnest($2::text[]) u(name) "
    "JOIN collections c ON c.database_id=$1 AND c.name=u.name JOIN counts n ON n.collection_id=c.id"
)
_DOCUMENTS: Final = (
    "SELECT c.name, d.id, d.rowkey, d.seq, d.data FROM unnest($2::text[],$3::text[]) u(name, id) "
    "JOIN collections c ON c.database_id=$1 AND c.name=u.name "
    "CROSS JOIN LATERAL "  # see reader.py
    "(SELECT id, rowkey, seq, data FROM documents WHERE collection_id=c.id AND id=u.id OFFSET 0) d"
)
_REQUESTS: Final = (
    "SELECT r.scope, r.key, r.at, r.digest, r.response, r.body, r.change "
    "FROM unnest($1::text[],$2::text[]) u(scope, key) JOIN requests r ON r.scope=u.scope AND r.key=u.key"
)


def documents_sql(order: str) -> str:
    """`(rowkey, id, data)` of the first documents from row key $1 to $2: at most $3, and no more when they have
    $4 bytes together."""
    return (
        "SELECT rowkey, id, data FROM (SELECT rowkey, id, data, sum(octet_length(data)) OVER w - "
        "octet_length(data) AS before FROM (SELECT rowkey, id, data FROM documents WHERE rowkey BETWEEN $1 "
        f"AND $2 ORDER BY rowkey {order} LIMIT $3) d WINDOW w AS (ORDER BY rowkey {order} ROWS UNBOUNDED "
        f"PRECEDING)) d WHERE before<$4 ORDER BY rowkey {order}"
    )


BOUNDS: Final = "SELECT h.database_id, h.head, h.trimmed FROM heads h JOIN databases d ON d.id=h.database_id"


class Needs(NamedTuple):
    """What the operations of a batch are going to read: collections, documents `(collection, id)`, and
    remembered requests `(scope, key)`."""

    collections: list[str]
    documents: list[tuple[str, str]]
    requests: list[tuple[str, str]]


class Transaction(Registry, transaction.Transaction):
    """`database_id`: the one database that it writes to, if it is known. With `known`, it begins with a
    guess."""

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
        self._savepoint: _Savepoint | None = None
        if known is not None:
            assert database_id is not None
            self._locked[database_id] = (known.head, -1, known.catalog)
            for name, row in known.collections.items():
                self._rows[database_id, name] = row

    # --- trips -------------------------------------------------------------------------------------

    def read_ahead(self, database_id: int, needs: Needs) -> None:
        """Begin, lock the head, and then read what operations need, in one trip. (A statement that both locks
        and reads would see what was there before it had to wait.)"""
        names = sorted({*needs.collections, *(name for name, _ in needs.documents)})
        statements: list[Statement] = [("BEGIN", ()), (LOCK_HEAD, (database_id,))]
        statements.append((_COLLECTIONS, (database_id, Texts(names))))
        if needs.documents:
            of, ids = zip(*needs.documents, strict=True)
            statements.append((_DOCUMENTS, (database_id, Texts(of), Texts(ids))))
        if needs.requests:
            scopes, keys = zip(*needs.requests, strict=True)
            statements.append((_REQUESTS, (Texts(scopes), Texts(keys))))
        _, heads, collections, *rest = self._session.run(statements)
        if not heads:
            return  # it was deleted: each operation is told so
        (head, trimmed, catalog) = heads[0]
        self._locked[database_id] = (head, trimmed, catalog)
        by_name = {row[4].decode(): _collection_row(row) for row in collections}
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
                self._requests[scope.decode(), key.decode()] = _remembered(fields)

    def begin(self) -> None:
        """Without a database: for the store's own work."""
        self._session.add("BEGIN")

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

    def _lock_removed(self, database_id: int) -> None:
        self._query("SELECT 1 FROM heads WHERE database_id=$1 FOR UPDATE", database_id)
        self._locked[database_id] = (0, 0, 0)

    # --- what is written ---------------------------------------------------------------------------

    def _write(self) -> None:
        """Add the statements for what was changed in memory since the last time."""
        savepoint = self._savepoint
        before: dict[int, Document | None] = {}
        marks: dict[Entry, bool] = {}
        if savepoint is not None and not savepoint.begun:
            before, marks = savepoint.pending, savepoint.marks
            self._session_add(_statements(before, marks))
            self._session_add([("SAVEPOINT operation", ())])
            savepoint.begun = True
        own = {key: row for key, row in self._pending.items() if key not in before or before[key] is not row}
        entered = {entry: mark for entry, mark in self._marks.items() if marks.get(entry) is not mark}
        self._session_add(_statements(own, entered))
        self._pending, self._marks = {}, {}
        if savepoint is not None:
            savepoint.pending, savepoint.marks = {}, {}

    def _session_add(self, statements: Iterable[Statement]) -> None:
        for sql, parameters in statements:
            self._written = True
            self._session.add(sql, *parameters)

    def finish(self, writer: bytes | None = None, batch: int = 0) -> tuple[bool, list[Statement]]:
        """The statements that end the transaction; and whether it writes anything. `writer`: whose row keeps
        the number of this batch."""
        statements = _statements(self._pending, self._marks)
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
        own = self._savepoint = _Savepoint(self._pending.copy(), self._marks.copy())
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

    # --- documents ---------------------------------------------------------------------------------

    def document(self, collection_id: int, id: str) -> tuple[int, int, bytes] | None:
        key = (collection_id, id)
        if key not in self._documents:
            if self._guess is not None:
                return None  # if it exists, the INSERT of one with this id fails
            found = self._query(
                "SELECT rowkey, seq, data FROM documents WHERE collection_id=$1 AND id=$2", collection_id, id
            )
            self._documents[key] = (found[0][0], found[0][1], found[0][2]) if found else None
        return self._documents[key]

    def documents(
        self, low: int, high: int, limit: int, max_bytes: int = AT_ONCE_BYTES, *, newest_first: bool = False
    ) -> list[tuple[int, str, bytes]]:
        rows = self._read(documents_sql("DESC" if newest_first else "ASC"), low, high, limit, max_bytes)
        return [(rowkey, id.decode(), data) for rowkey, id, data in rows]

    def _put(self, row: tuple[int, int, str, int, str]) -> None:
        rowkey, collection_id, id, seq, text = row
        if self.document(collection_id, id) is not None:
            raise Taken
        self._set(rowkey, collection_id, Document(id, seq, text.encode()))

    def _put_many(self, rows: list[tuple[int, int, str, int, str]]) -> None:
        ids = {row[2] for row in rows}
        if len(ids) < len(rows) or any(self.document(rows[0][1], id) is not None for id in ids):
            raise Taken
        for rowkey, collection_id, id, seq, text in rows:
            self._set(rowkey, collection_id, Document(id, seq, text.encode()))

    def expect(self, collection_id: int, documents: Iterable[tuple[str, bytes]]) -> None:
        if self._guess is not None:
            return
        expected = list(documents)
        self._read_documents(collection_id, [id for id, _ in expected])
        indexes = self._indexes.get(collection_id)
        if indexes is not None:
            own = [(at, index.id) for at, index in enumerate(indexes.all) if index.unique]
            self._expect_holders([(id, indexes.key(at, data)) for at, id in own for _, data in expected])

    def _read_documents(self, collection_id: int, ids: list[str]) -> None:
        unread = [id for id in ids if (collection_id, id) not in self._documents]
        if not unread:
            return
        for id in unread:
            self._documents[collection_id, id] = None
        for id, rowkey, seq, data in self._query(
            "SELECT d.id, rowkey, seq, data FROM unnest($2::text[]) u(id) CROSS JOIN LATERAL "
            "(SELECT id, rowkey, seq, data FROM documents WHERE collection_id=$1 AND id=u.id OFFSET 0) d",
            collection_id,
            Texts(unread),
        ):
            self._documents[collection_id, id.decode()] = (rowkey, seq, data)

    def _replace(self, rowkey: int, id: str, seq: int, data: str) -> None:
        self._set(rowkey, rowkey >> SEQ_BITS, Document(id, seq, data.encode()))

    def _set(self, rowkey: int, collection_id: int, document: Document) -> None:
        self._pending[rowkey] = document
        self._documents[collection_id, document.id] = (rowkey, document.seq, document.data)

    def _remove(self, rowkey: int, id: str) -> None:
        self._pending[rowkey] = None
        self._documents[rowkey >> SEQ_BITS, id] = None

    # --- collections -------------------------------------------------------------------------------

    def _collection(self, database_id: int, name: str) -> CollectionRow | None:
        self._lock(database_id)
        key = (database_id, name)
        if key not in self._rows:
            found = self._query(_COLLECTIONS, database_id, Texts([name]))
            self._rows[key] = _collection_row(found[0]) if found else None
        row = self._rows[key]
        if row is not None:
            self._in[row.id] = database_id
        return row

    def _new_collection(self, database_id: int, name: str) -> int:
        self._lock(database_id)
        ((id,),) = self._change(
            "WITH c AS (INSERT INTO collections (database_id, name) VALUES ($1,$2) RETURNING id) "
            "INSERT INTO counts (collection_id, newest) SELECT id, '' FROM c RETURNING collection_id",
            database_id,
            name,
        )
        self._in[id] = database_id
        self._changed.add(database_id)
        self._rows.pop((database_id, name), None)
        return int(id)

    def _remove_collection(self, collection_id: int) -> None:
        database_id, name = self._name(collection_id)
        self._changed.add(database_id)
        self._rows[database_id, name] = None
        self._add("DELETE FROM counts WHERE collection_id=$1", collection_id)
        self._add("DELETE FROM collections WHERE id=$1", collection_id)

    def _name(self, collection_id: int) -> tuple[int, str]:
        ((database_id, name),) = self._query(
            "SELECT database_id, name FROM collections WHERE id=$1", collection_id
        )
        return database_id, name.decode()

    def _has_at_most(self, collection_id: int, documents: int) -> bool:
        ((found,),) = self._read(
            "SELECT count(*) FROM (SELECT 1 FROM documents WHERE rowkey BETWEEN $1 AND $2 LIMIT $3) d",
            *span(collection_id),
            documents + 1,
        )
        return bool(found <= documents)

    def _save_schema(self, collection_id: int, text: str | None) -> None:
        self._changed.add(self._in[collection_id])
        self._add("UPDATE collections SET schema=$2 WHERE id=$1", collection_id, text)

    def _save_indexes(self, collection_id: int, text: str | None) -> None:
        self._changed.add(self._in[collection_id])
        self._add("UPDATE collections SET indexes=$2 WHERE id=$1", collection_id, text)

    def drops(self) -> list[tuple[int, str, int]]:
        rows = self._query(
            "SELECT c.database_id, c.name, d.until FROM drops d JOIN collections c ON c.id=d.collection_id"
        )
        return [(database_id, name.decode(), until) for database_id, name, until in rows]

    def drop(self, collection_id: int) -> int | None:
        found = self._query("SELECT until FROM drops WHERE collection_id=$1", collection_id)
        return found[0][0] if found else None

    def set_drop(self, collection_id: int, until: int | None) -> None:
        if until is None:
            self._add("DELETE FROM drops WHERE collection_id=$1", collection_id)
        else:
            self._add(
                "INSERT INTO drops VALUES ($1,$2) ON CONFLICT (collection_id) DO UPDATE SET until=$2",
                collection_id,
                until,
            )

    # --- indexes -----------------------------------------------------------------------------------

    def collections_with_made_indexes(self) -> list[tuple[int, str]]:
        rows = self._query(
            "SELECT database_id, name FROM collections WHERE indexes LIKE '%\"made\":true%' "
            "ORDER BY database_id, id"  # all nodes lock databases in this order
        )
        return [(database_id, name.decode()) for database_id, name in rows]

    def next_index_drop(self) -> int | None:
        found = self._query("SELECT id FROM index_drops ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED")
        return found[0][0] if found else None

    def next_index_build(self) -> int | None:
        found = self._query("SELECT id FROM index_builds ORDER BY id LIMIT 1")
        return found[0][0] if found else None

    def drop_entries(self, index_id: int, limit: int, max_bytes: int) -> None:
        ((removed,),) = self._change(
            "WITH e AS (DELETE FROM entries WHERE index_id=$1 AND (key, rowkey) IN "
            "(SELECT key, rowkey FROM entries WHERE index_id=$1 ORDER BY key, rowkey LIMIT $2) RETURNING 1) "
            "SELECT count(*) FROM e",
            index_id,
            limit,
        )
        if removed < limit:
            self._add("DELETE FROM index_drops WHERE id=$1", index_id)

    def _begin_build(self, collection_id: int, rowkey: int) -> int:
        ((id,),) = self._change(
            "INSERT INTO index_builds (collection_id, rowkey) VALUES ($1,$2) RETURNING id",
            collection_id,
            rowkey,
        )
        return int(id)

    def build_some(self, id: int, rows: int, max_bytes: int) -> None:
        found = self._query(
            "SELECT c.database_id FROM index_builds b JOIN collections c ON c.id=b.collection_id WHERE b.id=$1",
            id,
        )
        if found:
            self._lock(found[0][0])
            if self._query("SELECT 1 FROM index_builds WHERE id=$1", id):  # now that nobody else changes it
                super().build_some(id, rows, max_bytes)

    def _build(self, id: int) -> tuple[int, int]:
        ((collection_id, rowkey),) = self._query(
            "SELECT collection_id, rowkey FROM index_builds WHERE id=$1", id
        )
        return collection_id, rowkey

    def _continue_build(self, id: int, rowkey: int) -> None:
        self._add("UPDATE index_builds SET rowkey=$2 WHERE id=$1", id, rowkey)

    def _end_build(self, id: int) -> None:
        self._add("DELETE FROM index_builds WHERE id=$1", id)

    def _drop_index(self, id: int) -> None:
        self._add("INSERT INTO index_drops VALUES ($1)", id)

    def _enter(self, entries: list[Entry]) -> None:
        for index_id, key, rowkey in entries:
            short = stored(key)
            self._marks[index_id, short, rowkey] = True
            held = self._held.get((index_id, short))
            if held is not None:
                self._held[index_id, short] = held | {rowkey}

    def _leave(self, entries: list[Entry]) -> None:
        for index_id, key, rowkey in entries:
            short = stored(key)
            self._marks[index_id, short, rowkey] = False
            held = self._held.get((index_id, short))
            if held is not None:
                self._held[index_id, short] = held - {rowkey}

    def _holders(self, index: Index, key: bytes, rowkey: int) -> Iterable[str]:
        others = self._holding(index, key) - {rowkey}
        return [kind(_at(self._data(other), index.path)) for other in others]

    def _expect_holders(self, keys: list[tuple[int, bytes]]) -> None:
        wanted = {(id, stored(key)) for id, key in keys} - self._held.keys()
        if not wanted:
            return
        found: dict[tuple[int, bytes], set[int]] = {held: set() for held in wanted}
        for id, key, rowkey in self._read(
            "SELECT u.id, u.key, e.rowkey FROM unnest($1::bigint[],$2::bytea[]) u(id, key) CROSS JOIN LATERAL "
            "(SELECT rowkey FROM entries WHERE index_id=u.id AND key=u.key OFFSET 0) e",
            Ints([id for id, _ in wanted]),
            Blobs([key for _, key in wanted]),
        ):
            found[id, key].add(rowkey)
        self._held |= {held: frozenset(rowkeys) for held, rowkeys in found.items()}

    def _holding(self, index: Index, key: bytes) -> frozenset[int]:
        """The row keys of the documents that have a key in an index."""
        short = stored(key)
        held = self._held.get((index.id, short))
        if held is None:
            rows = self._read("SELECT rowkey FROM entries WHERE index_id=$1 AND key=$2", index.id, short)
            held = self._held[index.id, short] = frozenset(rowkey for (rowkey,) in rows)
        return held

    def _data(self, rowkey: int) -> bytes:
        pending = self._pending.get(rowkey)
        if pending is not None:
            return pending.data
        ((data,),) = self._read("SELECT data FROM documents WHERE rowkey=$1", rowkey)
        return bytes(data)

    def _holders_unindexed(self, collection_id: int, index: Index, value: Any, rowkey: int) -> Iterable[str]:
        own = part(value)
        low, high = span(collection_id)
        while found := self.documents(low, high, 1000):
            for other, _, data in found:
                theirs = _at(data, index.path)
                if other != rowkey and part(theirs) == own:
                    yield kind(theirs)
            low = found[-1][0] + 1

    def _has_value(self, collection_id: int, index: Index | None, field: str, value: Value) -> bool:
        if index is not None and len(index.fields) == 1:
            own = part(value)
            key = inverted(own) if parse_field(index.fields[0]).descending else own
            return any(other == kind(value) for other in self._holders(index, key, 0))
        question = ask(encode({field: value}).decode())
        low, high = span(collection_id)
        if index is not None:
            lowest, highest = interval(b"", point(value), descending=parse_field(index.fields[0]).descending)
            rows = self._read(
                "SELECT d.data FROM entries e JOIN documents d ON d.rowkey=e.rowkey "
                "WHERE e.index_id=$1 AND e.key>=$2 AND e.key<$3",
                index.id,
                *intervals([(lowest, highest)])[0],
            )
            return any(self.satisfies(data, question) for (data,) in rows)
        while found := self.documents(low, high, 1000):
            if any(self.satisfies(data, question) for _, _, data in found):
                return True
            low = found[-1][0] + 1
        return False

    # --- the change log ----------------------------------------------------------------------------

    def _logged_data(self, rowkey: int) -> bytes | None:
        found = self._query(
            "SELECT data FROM changes WHERE database_id=$1 AND seq=$2", rowkey >> SEQ_BITS, rowkey & SEQ_MASK
        )
        return found[0][0] if found else None

    def bounds_of(self, database_id: int) -> tuple[int, int]:
        head, trimmed, _ = self._lock(database_id)
        return head, trimmed

    def before_newest(self, database_id: int, count: int) -> int:
        head, trimmed, _ = self._lock(database_id)
        last = head - count
        if last > trimmed:  # else all of them are
            for since, until in self._query(
                "SELECT since, until FROM breaks WHERE database_id=$1 ORDER BY until DESC", database_id
            ):
                if last < until:
                    last -= until - since
        return last

    def bounds(self) -> dict[int, tuple[int, int]]:
        rows = self._query(BOUNDS)
        return {id: (head, trimmed) for id, head, trimmed in rows}

    def logged(self, database_id: int, after: int, limit: int) -> list[tuple[int, int, int]]:
        rows = self._query(
            "SELECT seq, at, size FROM changes WHERE database_id=$1 AND seq>$2 ORDER BY seq LIMIT $3",
            database_id,
            after,
            limit,
        )
        return [(seq, at, size) for seq, at, size in rows]

    def trim(self, database_id: int, trimmed: int, until: int) -> None:
        self._add(
            "DELETE FROM changes WHERE database_id=$1 AND seq>$2 AND seq<=$3", database_id, trimmed, until
        )
        self._add("DELETE FROM breaks WHERE database_id=$1 AND until<=$2", database_id, until)
        self._add("UPDATE heads SET trimmed=$2 WHERE database_id=$1", database_id, until)
        head, _, catalog = self._locked[database_id]
        self._locked[database_id] = (head, until, catalog)

    # --- requests, revocations, time -----------------------------------------------------------------

    def recall(self, scope: str, key: str) -> Remembered | None:
        if (scope, key) not in self._requests:
            rows = self._query(_REQUESTS, Texts([scope]), Texts([key]))
            self._requests[scope, key] = _remembered(rows[0][2:]) if rows else None
        return self._requests[scope, key]

    def remember(self, scope: str, key: str, request: Remembered) -> None:
        self._requests[scope, key] = request
        self._add(
            "INSERT INTO requests (scope, key, at, digest, response, body, change) "
            "VALUES ($1,$2,$3,$4,$5,$6,$7) ON CONFLICT (scope, key) "
            "DO UPDATE SET at=$3, digest=$4, response=$5, body=$6, change=$7",
            scope,
            key,
            *request,
        )

    def forget_requests(self, before: float, limit: int) -> int:
        ((forgotten,),) = self._change(
            "WITH r AS (DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE at<$1 ORDER BY at "
            "LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) FROM r",
            int(before),
            limit,
        )
        return int(forgotten)

    def revoke(self, database_id: int, kind: str, name: str, at: int, until: int) -> None:
        # This first: its lock makes ids visible in their order. Readers ask for those after the last.
        self.tell_servers()
        # A clock that was set back must not take back an earlier revocation.
        self._add(
            "WITH old AS (DELETE FROM revocations WHERE database_id=$1 AND kind=$2 AND name=$3 RETURNING at) "
            "INSERT INTO revocations (database_id, kind, name, at, until) "
            "SELECT $1, $2, $3, greatest($4::bigint, (SELECT max(at) FROM old)), $5",
            database_id,
            kind,
            name,
            at,
            until,
        )

    def forget_revocations(self, until: int, limit: int) -> int:
        ((forgotten,),) = self._change(
            "WITH r AS (DELETE FROM revocations WHERE id IN (SELECT id FROM revocations WHERE until<$1 "
            "LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) FROM r",
            until,
            limit,
        )
        return int(forgotten)

    def keep_time(self, log_time: float, wall_time: float) -> None:
        for name, seconds in (("log_time", log_time), ("wall_time", wall_time)):
            self._add(
                "INSERT INTO meta VALUES ($1,$2) ON CONFLICT (name) DO UPDATE SET value=$2",
                name,
                int(seconds * 1000),
            )


class _Savepoint:
    """What was pending when it was made. `begun`: PostgreSQL has a savepoint, too."""

    def __init__(self, pending: dict[int, Document | None], marks: dict[Entry, bool]) -> None:
        self.pending, self.marks = pending, marks
        self.begun = False


def _statements(pending: dict[int, Document | None], marks: dict[Entry, bool]) -> list[Statement]:
    """First what is removed, so that an id or a value can be taken anew."""
    statements: list[Statement] = []
    removed = [rowkey for rowkey, document in pending.items() if document is None]
    if removed:
        statements.append(("DELETE FROM documents WHERE rowkey=ANY($1::bigint[])", (Ints(removed),)))
    kept = [(rowkey, document) for rowkey, document in pending.items() if document is not None]
    fresh = [(rowkey, document) for rowkey, document in kept if document.seq == rowkey & SEQ_MASK]
    changed = [(rowkey, document) for rowkey, document in kept if document.seq != rowkey & SEQ_MASK]
    for rows, conflict in (
        (changed, " ON CONFLICT (rowkey) DO UPDATE SET seq=excluded.seq, data=excluded.data"),
        (fresh, ""),
    ):
        if rows:
            statements.append(
                (
                    "INSERT INTO documents (rowkey, collection_id, id, seq, data) SELECT u.rowkey, "
                    f"u.rowkey>>{SEQ_BITS}, u.id, u.seq, u.data FROM unnest($1::bigint[],$2::text[],"
                    f"$3::bigint[],$4::text[]) u(rowkey, id, seq, data){conflict}",
                    (
                        Ints([rowkey for rowkey, _ in rows]),
                        Texts([document.id for _, document in rows]),
                        Ints([document.seq for _, document in rows]),
                        Texts([document.data for _, document in rows]),
                    ),
                )
            )
    for entries, sql in (
        (
            [entry for entry, mark in marks.items() if not mark],
            "DELETE FROM entries e USING unnest($1::bigint[],$2::bytea[],$3::bigint[]) "
            "u(index_id, key, rowkey) WHERE e.index_id=u.index_id AND e.key=u.key AND e.rowkey=u.rowkey",
        ),
        (
            [entry for entry, mark in marks.items() if mark],
            "INSERT INTO entries SELECT * FROM unnest($1::bigint[],$2::bytea[],$3::bigint[]) "
            "ON CONFLICT DO NOTHING",
        ),
    ):
        if entries:
            ids, keys, rowkeys = zip(*entries, strict=True)
            statements.append((sql, (Ints(ids), Blobs(keys), Ints(rowkeys))))
    return statements


def _collection_row(row: Row) -> CollectionRow:
    id, schema, indexes, newest = row[:4]
    return CollectionRow(
        id,
        None if schema is None else schema.decode(),
        None if indexes is None else indexes.decode(),
        None if newest is None else newest.decode(),
    )


def _remembered(fields: Any) -> Remembered:
    at, digest, response, body, change = fields
    return Remembered(at, digest, response.decode(), body, change)


def _at(data: bytes, path: str) -> Any:
    value: Any = decode(data)
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
