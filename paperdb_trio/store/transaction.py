"""One open write transaction: what operations may do to it.

Law: runs on the writer's thread only, between BEGIN IMMEDIATE and COMMIT; forgets everything at the end
of the transaction, so that a rollback or another process's commit can never leave it wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from paperdb_trio.errors import bad_request, unique_violation
from paperdb_trio.model import Change, timestamp
from paperdb_trio.store import sqlite
from paperdb_trio.store.document_schema import DocumentSchema, stored_schema
from paperdb_trio.store.file import SEQ_BITS, span
from paperdb_trio.store.query import field as query_field
from paperdb_trio.store.query import unique_condition

MAX_UNIQUE_INDEXES: Final = 16
"""Indexes that inserts with `unique` may add to one collection. Further fields are refused: to look for each of
their values in all documents, on the one writer's thread, would let one insert hold up everybody's writes."""
MAX_INDEXES: Final = 128
"""Indexes in one database. Every insert looks at each index there is: 100 cost 40 µs, 500 0.7 ms, 2,000 13."""


def _index_name(kind: str, collection_id: int, field: str) -> str:
    """The field's name is in hex: no quoting, and it can be read back from an error."""
    return f"{kind}_{collection_id}_{field.encode().hex()}"


_INDEX_NAME: Final = re.compile(r"(?:unique|schema_unique|schema_index)_([0-9]+)_")


def _raise_if_unique_field(error: sqlite.ConstraintError) -> None:
    """SQLite says "UNIQUE constraint failed: index 'schema_unique_7_656d61696c'"."""
    found = re.search(r"schema_unique_[0-9]+_([0-9a-f]+)", str(error))
    if found is not None:
        raise unique_violation(bytes.fromhex(found[1]).decode()) from None


class Transaction:
    """`changes` holds what is to be appended to the change log and published, in order.

    `now` is what the computer's clock says, for documents; `log_time` that of `LogClock`, for changes.
    """

    def __init__(self, connection: sqlite.Connection, now: float, log_time: float) -> None:
        self.connection = connection
        self.log_time = log_time
        self.stamp = timestamp(now)
        self.changes: list[Change] = []
        self.size = 0
        """Bytes of the changes' data."""
        self._texts: list[str] = []  # of each change the data, as SQLite takes it
        self._heads: dict[int, int] = {}
        self._collections: dict[tuple[int, str], int] = {}
        self._counts: dict[int, int] = {}
        self._schemas: dict[int, DocumentSchema] = {}

    def flush(self) -> None:
        """Append the change rows and the counters; called once, just before COMMIT."""
        at = int(self.log_time * 1000)
        self.connection.executemany(
            "INSERT INTO changes VALUES (?,?,?,?,?,?)",
            [
                (c.database_id << SEQ_BITS | c.seq, at, len(c.data), c.type, c.collection, text)
                for c, text in zip(self.changes, self._texts, strict=True)
            ],
        )
        for database_id, head in self._heads.items():
            self.connection.execute("UPDATE databases SET head=? WHERE id=?", (head, database_id))
        for collection_id, delta in self._counts.items():
            if delta:
                self.connection.execute(
                    "UPDATE collections SET documents=documents+? WHERE id=?", (delta, collection_id)
                )

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """What happens inside is undone, on disk and here, when it raises."""
        changes, size, heads = len(self.changes), self.size, self._heads.copy()
        collections, counts = self._collections.copy(), self._counts.copy()
        self.connection.execute("SAVEPOINT operation")
        try:
            yield
        except BaseException:
            del self.changes[changes:], self._texts[changes:]
            self.size = size
            self._heads, self._collections, self._counts = heads, collections, counts
            if self.connection.in_transaction:  # SQLite ends it by itself when the disk is full
                self.connection.execute("ROLLBACK TO operation")
                self.connection.execute("RELEASE operation")
            raise
        self.connection.execute("RELEASE operation")

    # --- collections and documents ---------------------------------------------------------------

    def collection_id(self, database_id: int, name: str, *, create: bool = False) -> int | None:
        key = (database_id, name)
        found = self._collections.get(key)
        if found is None:
            row = self.connection.execute(
                "SELECT id, schema FROM collections WHERE database_id=? AND name=?", key
            ).fetchone()
            if row is not None:
                found, schema = row
                if schema is not None:
                    self._schemas[found] = stored_schema(schema)
            elif create:
                found = self.connection.execute(
                    "INSERT INTO collections (database_id, name) VALUES (?,?) RETURNING id", key
                ).fetchone()[0]
            else:
                return None
            self._collections[key] = found
        return found

    def schema(self, collection_id: int) -> DocumentSchema | None:
        """The schema that documents written to the collection must satisfy."""
        return self._schemas.get(collection_id)

    def document(self, collection_id: int, id: str) -> tuple[int, int, bytes] | None:
        """`(position, seq, data)` of a document as this transaction sees it."""
        row = self.connection.execute(
            "SELECT position, seq, json(data) FROM documents WHERE collection_id=? AND id=?",
            (collection_id, id),
        ).fetchone()
        return None if row is None else (row[0], row[1], row[2].encode())

    def insert(self, database_id: int, collection: str, id: str, data: bytes) -> int | None:
        """Insert a document and return its seq, or None (and no trace) when the id is taken.

        Raises a 409 for a value that the schema wants to be unique.
        """
        collection_id = self.collection_id(database_id, collection, create=True)
        assert collection_id is not None
        seq, text = self._head(database_id) + 1, data.decode()
        try:
            self.connection.execute(
                "INSERT INTO documents VALUES (?,?,?,?,jsonb(?))",
                (collection_id << SEQ_BITS | seq, collection_id, id, seq, text),
            )
        except sqlite.ConstraintError as error:
            _raise_if_unique_field(error)
            return None
        self._record(database_id, "insert", collection, id, data, text)
        self._count(collection_id, 1)
        return seq

    def insert_many(self, database_id: int, collection: str, documents: list[tuple[str, bytes]]) -> bool:
        """Insert documents `(id, data)`; False, and no trace, if one of them cannot be: an id is taken, or
        a unique value."""
        with suppress(sqlite.ConstraintError), self.savepoint():
            collection_id = self.collection_id(database_id, collection, create=True)
            assert collection_id is not None
            first = self._head(database_id) + 1
            base = collection_id << SEQ_BITS
            texts = [data.decode() for _, data in documents]
            self.connection.executemany(
                "INSERT INTO documents VALUES (?,?,?,?,jsonb(?))",
                [
                    (base | first + n, collection_id, document[0], first + n, text)
                    for n, (document, text) in enumerate(zip(documents, texts, strict=True))
                ],
            )
            self.changes += [
                Change(database_id, first + n, "insert", collection, id, data)
                for n, (id, data) in enumerate(documents)
            ]
            self._texts += texts
            self.size += sum(len(data) for _, data in documents)
            self._heads[database_id] = first + len(documents) - 1
            self._count(collection_id, len(documents))
            return True
        return False

    def update(self, database_id: int, collection: str, position: int, id: str, data: bytes) -> int:
        """Raises a 409 like `insert`."""
        text = data.decode()
        try:
            self.connection.execute(
                "UPDATE documents SET data=jsonb(?), seq=? WHERE position=?",
                (text, self._head(database_id) + 1, position),
            )
        except sqlite.ConstraintError as error:
            _raise_if_unique_field(error)
            raise
        return self._record(database_id, "update", collection, id, data, text)

    def delete(self, database_id: int, collection: str, position: int, id: str, data: bytes) -> int:
        self.connection.execute("DELETE FROM documents WHERE position=?", (position,))
        self._count(position >> SEQ_BITS, -1)
        return self._record(database_id, "delete", collection, id, data, data.decode())

    def drop_if_empty(self, database_id: int, collection: str, collection_id: int) -> bool:
        """Remove the collection itself, with its indexes, once no document is left in it."""
        low, high = span(collection_id)
        if self.connection.execute(
            "SELECT 1 FROM documents WHERE position BETWEEN ? AND ? LIMIT 1", (low, high)
        ).fetchone():
            return False
        self.drop_indexes(collection_id, "unique", "schema_unique", "schema_index")
        self.connection.execute("DELETE FROM collections WHERE id=?", (collection_id,))
        self._collections.pop((database_id, collection), None)
        self._counts.pop(collection_id, None)
        return True

    def has_value(
        self, database_id: int, collection_id: int, field: str, value: str | int | float | bool
    ) -> bool:
        """Whether a document of the collection has this value at this field.

        The first question about a field adds an index for it, partial to the collection's range, so that
        `unique` costs the same however large the collection has grown. Raises a 400 when there are too many.
        """
        condition, parameters, expression = unique_condition(field, value)
        low, high = span(collection_id)
        # Literal bounds: the planner uses a partial index only when it sees the very terms of its WHERE.
        within = f"position>={low} AND position<={high}"
        index = _index_name("unique", collection_id, field)
        indexes = self._indexes(collection_id, "unique")
        if index not in indexes:
            if len(indexes) >= MAX_UNIQUE_INDEXES:
                raise bad_request(
                    f"At most {MAX_UNIQUE_INDEXES} different fields of a collection can be 'unique'; "
                    "a schema can have more",
                    "TOO_MANY_UNIQUE_FIELDS",
                )
            self._check_indexes(database_id, 1)
            self.connection.execute(f'CREATE INDEX "{index}" ON documents ({expression}) WHERE {within}')
        return (
            self.connection.execute(
                f"SELECT 1 FROM documents WHERE {within} AND {condition} LIMIT 1", parameters
            ).fetchone()
            is not None
        )

    def set_schema(self, database_id: int, collection: str, schema: DocumentSchema) -> None:
        """Put a schema in force, with its indexes.

        Raises a 409 if what is there breaks a unique field, and a 400 for too many indexes.
        """
        collection_id = self.collection_id(database_id, collection, create=True)
        assert collection_id is not None
        there = self._indexes(collection_id, "schema_unique") | self._indexes(collection_id, "schema_index")
        wanted: dict[str, str] = {}  # an index that stays as it is need not be built again
        low, high = span(collection_id)
        for property in schema.properties:
            at = query_field(property.name)
            within = f"WHERE position>={low} AND position<={high}"
            if property.unique:
                # To json_extract true is 1, and an array its text; the first term keeps them apart.
                name = _index_name("schema_unique", collection_id, property.name)
                terms = f"replace({at.type},'real','integer'), {at.value}"
                wanted[name] = f'CREATE UNIQUE INDEX "{name}" ON documents ({terms}) {within}'
            if property.index or property.unique:
                name = _index_name("schema_index", collection_id, property.name)
                wanted[name] = f'CREATE INDEX "{name}" ON documents ({at.value}) {within}'
        for name in there - wanted.keys():
            self.connection.execute(f'DROP INDEX "{name}"')
        missing = [sql for name, sql in wanted.items() if name not in there]
        self._check_indexes(database_id, len(missing))
        for sql in missing:
            try:
                self.connection.execute(sql)
            except sqlite.ConstraintError as error:
                _raise_if_unique_field(error)
                raise
        self.connection.execute(
            "UPDATE collections SET schema=? WHERE id=?", (schema.text.decode(), collection_id)
        )
        self._schemas[collection_id] = schema

    def delete_schema(self, collection_id: int) -> None:
        self.drop_indexes(collection_id, "schema_unique", "schema_index")
        self.connection.execute("UPDATE collections SET schema=NULL WHERE id=?", (collection_id,))
        del self._schemas[collection_id]

    def drop_indexes(self, collection_id: int, *kinds: str) -> None:
        for kind in kinds:
            for name in self._indexes(collection_id, kind):
                self.connection.execute(f'DROP INDEX "{name}"')

    def _check_indexes(self, database_id: int, more: int) -> None:
        """Raises a 400 when the database would have too many indexes."""
        if not more:
            return
        rows = self.connection.execute("SELECT id FROM collections WHERE database_id=?", (database_id,))
        own = {id for (id,) in rows}
        names = self.connection.execute("SELECT name FROM sqlite_master WHERE type='index'").fetchall()
        found = (_INDEX_NAME.match(name) for (name,) in names)
        if more + sum(match is not None and int(match[1]) in own for match in found) > MAX_INDEXES:
            raise bad_request(f"At most {MAX_INDEXES} indexes in one database", "TOO_MANY_INDEXES")

    def _indexes(self, collection_id: int, kind: str) -> set[str]:
        low, high = f"{kind}_{collection_id}_", f"{kind}_{collection_id}`"
        rows = self.connection.execute(
            "SELECT name FROM sqlite_master WHERE type='index' AND name>? AND name<?", (low, high)
        )
        return {name for (name,) in rows}

    def _head(self, database_id: int) -> int:
        head = self._heads.get(database_id)
        if head is None:
            (head,) = self.connection.execute(
                "SELECT head FROM databases WHERE id=?", (database_id,)
            ).fetchone()
            self._heads[database_id] = head
        return head

    def _count(self, collection_id: int, delta: int) -> None:
        self._counts[collection_id] = self._counts.get(collection_id, 0) + delta

    def _record(self, database_id: int, type: str, collection: str, id: str, data: bytes, text: str) -> int:
        seq = self._head(database_id) + 1
        self._heads[database_id] = seq
        self.changes.append(Change(database_id, seq, type, collection, id, data))
        self._texts.append(text)
        self.size += len(data)
        return seq
