"""One open write transaction, as operations use it.

Law: it runs only on the writer's thread, between BEGIN IMMEDIATE and COMMIT. It forgets everything at the end
of the transaction, so that a rollback or another process's commit can never make it wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import msgspec

from paperdb_trio.errors import ApiError
from paperdb_trio.model import Change, timestamp
from paperdb_trio.store.query import Question
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.catalog import ENTER, LEAVE, Catalog
from paperdb_trio.store.sqlite.rowkeys import SEQ_BITS, span


class Transaction(Catalog):
    """`changes` are appended to the change log and published, in order.

    `now` is the time of the computer's clock, for documents. `log_time` is that of `LogClock`, for changes.
    """

    def __init__(self, connection: sqlite.Connection, now: float, log_time: float) -> None:
        super().__init__(connection, log_time)
        self.stamp = timestamp(now)
        self.changes: list[Change] = []
        self.size = 0
        """Bytes of the changes' data."""
        self.within: Question | None = None
        """What documents must match that are inserted or updated."""
        self._texts: list[str] = []  # the data of each change, as `str` for SQLite
        self._heads: dict[int, int] = {}
        self._counts: dict[int, int] = {}

    def flush(self) -> None:
        """Write the changes and the counters. Called once, just before COMMIT."""
        at = int(self.log_time * 1000)
        self.connection.executemany(
            "INSERT INTO changes (rowkey, at, size, type, collection, data, id, before, txn) "
            "VALUES (?,?,?,?,?,?,?,?,?)",
            [
                (
                    c.database_id << SEQ_BITS | c.seq,
                    at,
                    len(c.data) + len(c.before or b""),
                    c.type,
                    c.collection,
                    text,
                    c.id,
                    None if c.before is None else c.before.decode(),
                    c.txn,
                )
                for c, text in zip(self.changes, self._texts, strict=True)
            ],
        )
        for database_id, head in self._heads.items():
            self.connection.execute("UPDATE databases SET head=? WHERE id=?", (head, database_id))
        for collection_id, delta in self._counts.items():
            self.connection.execute(
                "UPDATE collections SET documents=documents+?, newest=? WHERE id=?",
                (delta, self._newest[collection_id], collection_id),
            )

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """If the block raises, everything in it is undone, in the file and in this object."""
        changes, size, heads = len(self.changes), self.size, self._heads.copy()
        collections, counts = self._collections.copy(), self._counts.copy()
        newest, indexes = self._newest.copy(), self._indexes.copy()
        self.connection.execute("SAVEPOINT operation")
        try:
            yield
        except BaseException:
            del self.changes[changes:], self._texts[changes:]
            self.size = size
            self._heads, self._collections, self._counts = heads, collections, counts
            self._newest, self._indexes = newest, indexes
            if self.connection.in_transaction:  # SQLite ends it itself if the disk is full
                self.connection.execute("ROLLBACK TO operation")
                self.connection.execute("RELEASE operation")
            raise
        self.connection.execute("RELEASE operation")

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """A savepoint whose changes are one transaction for those who follow the log: they get a `txn`."""
        start = len(self.changes)
        with self.savepoint():
            yield
        own = self.changes[start:]
        if len(own) > 1:
            first = own[0].seq
            self.changes[start:] = [msgspec.structs.replace(change, txn=first) for change in own]

    # --- documents -------------------------------------------------------------------------------

    def document(self, collection_id: int, id: str) -> tuple[int, int, bytes] | None:
        """`(rowkey, seq, data)` of a document as this transaction sees it."""
        row = self.connection.execute(
            "SELECT rowkey, seq, json(data) FROM documents WHERE collection_id=? AND id=?",
            (collection_id, id),
        ).fetchone()
        return None if row is None else (row[0], row[1], row[2].encode())

    def change_data(self, rowkey: int) -> bytes | None:
        """The document of a change in the log, also of one that this transaction has yet to write there."""
        for change in reversed(self.changes):
            if change.database_id << SEQ_BITS | change.seq == rowkey:
                return change.data
        row = self.connection.execute("SELECT data FROM changes WHERE rowkey=?", (rowkey,)).fetchone()
        return None if row is None else row[0].encode()

    def satisfies(self, rowkey: int, question: Question) -> bool:
        """Whether the document, as it is now, matches a question."""
        found = self.connection.execute(
            f"SELECT 1 FROM documents d WHERE d.rowkey=? AND {question.condition}",
            (rowkey, *question.parameters),
        )
        return found.fetchone() is not None

    def _require(self, data: bytes, question: Question) -> None:
        found = self.connection.execute(
            f"WITH d AS MATERIALIZED (SELECT jsonb(?) AS data) SELECT 1 FROM d WHERE {question.condition}",
            (data.decode(), *question.parameters),
        )
        if found.fetchone() is None:
            raise outside_rule()

    def insert(
        self, database_id: int, collection: str, id: str, data: bytes, created: str | None = None
    ) -> int | None:
        """Insert a document and return its seq. If the id is taken, return None and change nothing. `created`:
        its `createdAt`, if that is not now.

        Raises a 409 for a value that exists already at a unique field of the schema, and before that a 403
        `RULE` for a document that is not `within`.
        """
        if self.within is not None:
            self._require(data, self.within)
        collection_id = self.collection_id(database_id, collection, create=True)
        assert collection_id is not None
        seq, text = self._head(database_id) + 1, data.decode()
        rowkey = collection_id << SEQ_BITS | seq
        try:
            self.connection.execute(
                "INSERT INTO documents VALUES (?,?,?,?,jsonb(?))", (rowkey, collection_id, id, seq, text)
            )
        except sqlite.ConstraintError:
            return None
        indexes = self._indexes.get(collection_id)
        if indexes is not None:
            try:
                entries = self._entries(collection_id, indexes, rowkey, data)
            except ApiError:
                self.connection.execute("DELETE FROM documents WHERE rowkey=?", (rowkey,))
                raise
            for entry in entries:
                self.connection.execute(ENTER, entry)
        self._record(database_id, "insert", collection, id, data, text)
        self._count(collection_id, 1, created or self.stamp)
        return seq

    def insert_many(self, database_id: int, collection: str, documents: list[tuple[str, bytes]]) -> bool:
        """Insert documents `(id, data)`, created now. Returns False and inserts nothing if one of them cannot
        be inserted because its id or a unique value is taken. Not for documents that must be `within`."""
        assert self.within is None
        collection_id = self.collection_id(database_id, collection, create=True)
        assert collection_id is not None
        first = self._head(database_id) + 1
        rows = [
            (collection_id << SEQ_BITS | seq, collection_id, id, seq, data.decode())
            for seq, (id, data) in enumerate(documents, first)
        ]
        if not self._enter_many(collection_id, rows, documents):
            return False
        self.changes += [
            Change(database_id, seq, "insert", collection, id, data)
            for seq, (id, data) in enumerate(documents, first)
        ]
        self._texts += [row[-1] for row in rows]
        self.size += sum([len(data) for _, data in documents])
        self._heads[database_id] = rows[-1][3]
        self._count(collection_id, len(documents), self.stamp)
        return True

    def _enter_many(
        self,
        collection_id: int,
        rows: list[tuple[int, int, str, int, str]],
        documents: list[tuple[str, bytes]],
    ) -> bool:
        """Insert the rows of new documents, and their entries in indexes."""
        indexes = self._indexes.get(collection_id)
        unique = indexes is not None and self._has_unique(collection_id)
        # A savepoint copies each page before its first change, a tenth of the cost of a bulk. Without unique
        # fields only an id can be taken, and then only documents have been written.
        with suppress(sqlite.ConstraintError, ApiError), self.savepoint() if unique else nullcontext():
            try:
                self.connection.executemany("INSERT INTO documents VALUES (?,?,?,?,jsonb(?))", rows)
            except sqlite.ConstraintError:
                self.connection.execute(
                    "DELETE FROM documents WHERE rowkey BETWEEN ? AND ?", (rows[0][0], rows[-1][0])
                )
                raise
            if indexes is not None:
                entries: list[tuple[int, bytes, int]] = []
                for row, (_, data) in zip(rows, documents, strict=True):
                    own = self._entries(collection_id, indexes, row[0], data)
                    if unique:  # at once: the next document is compared with them
                        for entry in own:
                            self.connection.execute(ENTER, entry)
                    else:
                        entries += own
                self.connection.executemany(ENTER, entries)
            return True
        return False

    def update(
        self, database_id: int, collection: str, rowkey: int, id: str, old: bytes, data: bytes, before: bytes
    ) -> int:
        """`before`: the `reverse_patch`. Raises what `insert` does."""
        if self.within is not None:
            self._require(data, self.within)
        text = data.decode()
        collection_id = rowkey >> SEQ_BITS
        indexes = self._indexes.get(collection_id)
        if indexes is not None:
            left = [(index.id, key, rowkey) for index, key in zip(indexes.all, indexes.keys(old), strict=True)]
            now = self._entries(collection_id, indexes, rowkey, data)
            for entry in left:
                if entry not in now:
                    self.connection.execute(LEAVE, entry)
            for entry in now:
                if entry not in left:
                    self.connection.execute(ENTER, entry)
        self.connection.execute(
            "UPDATE documents SET data=jsonb(?), seq=? WHERE rowkey=?",
            (text, self._head(database_id) + 1, rowkey),
        )
        return self._record(database_id, "update", collection, id, data, text, before)

    def delete(self, database_id: int, collection: str, rowkey: int, id: str, data: bytes) -> int:
        self.connection.execute("DELETE FROM documents WHERE rowkey=?", (rowkey,))
        collection_id = rowkey >> SEQ_BITS
        indexes = self._indexes.get(collection_id)
        if indexes is not None:
            for index, key in zip(indexes.all, indexes.keys(data), strict=True):
                self.connection.execute(LEAVE, (index.id, key, rowkey))
        self._count(collection_id, -1)
        return self._record(database_id, "delete", collection, id, data, data.decode())

    def drop_if_empty(self, database_id: int, collection: str, collection_id: int) -> bool:
        """Remove the collection and its indexes if no document is left in it."""
        if self.connection.execute(
            "SELECT 1 FROM documents WHERE rowkey BETWEEN ? AND ? LIMIT 1", span(collection_id)
        ).fetchone():
            return False
        self._set_indexes(collection_id, ())
        self.connection.execute("DELETE FROM collections WHERE id=?", (collection_id,))
        self._collections.pop((database_id, collection), None)
        self._counts.pop(collection_id, None)
        return True

    def disorder(self, collection_id: int) -> None:
        """Note that the documents are no longer in order of `createdAt`."""
        self._newest[collection_id] = None
        self._counts.setdefault(collection_id, 0)

    def _head(self, database_id: int) -> int:
        head = self._heads.get(database_id)
        if head is None:
            (head,) = self.connection.execute(
                "SELECT head FROM databases WHERE id=?", (database_id,)
            ).fetchone()
            self._heads[database_id] = head
        return head

    def _count(self, collection_id: int, delta: int, created: str | None = None) -> None:
        self._counts[collection_id] = self._counts.get(collection_id, 0) + delta
        newest = self._newest[collection_id]
        if created is not None and newest is not None:
            self._newest[collection_id] = created if created >= newest else None

    def _record(
        self,
        database_id: int,
        type: str,
        collection: str,
        id: str,
        data: bytes,
        text: str,
        before: bytes | None = None,
    ) -> int:
        seq = self._head(database_id) + 1
        self._heads[database_id] = seq
        self.changes.append(Change(database_id, seq, type, collection, id, data, before))
        self._texts.append(text)
        self.size += len(data) if before is None else len(data) + len(before)
        return seq


def outside_rule() -> ApiError:
    return ApiError(403, "RULE", "The token's rule must hold for the document before and after the write")
