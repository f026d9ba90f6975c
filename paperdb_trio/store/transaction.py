"""One open write transaction, as operations use it.

Law: no SQL. An engine brings the rows (the abstract methods here and in `Catalog`); what a write means is here,
once for all engines. A transaction runs on the writer's thread and forgets everything at its end, so that a
rollback or another process's commit can never make it wrong.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import NamedTuple

import msgspec

from paperdb_trio.errors import ApiError
from paperdb_trio.json_input import decode
from paperdb_trio.model import Change, timestamp
from paperdb_trio.store.catalog import Catalog
from paperdb_trio.store.query import Question
from paperdb_trio.store.registry import Registry
from paperdb_trio.store.rowkeys import SEQ_BITS, span


class Taken(Exception):
    """A row with this key exists. Nothing was written."""


class Remembered(NamedTuple):
    """A request that is remembered. `at`: milliseconds of the log's clock. `change`: the row key of the change
    that holds the body, if `body` is None."""

    at: int
    digest: bytes
    response: str
    body: bytes | None
    change: int | None


class Transaction(Catalog, Registry):
    """`changes` are appended to the change log and published, in order.

    `now` is the time for documents. `log_time` is that of `LogClock`, for changes.
    """

    def __init__(self, now: float, log_time: float) -> None:
        super().__init__(log_time)
        self.stamp = timestamp(now)
        self.changes: list[Change] = []
        self.size = 0
        """Bytes of the changes' data."""
        self.within: Question | None = None
        """What documents must match that are inserted or updated."""
        self._texts: list[str] = []  # the data of each change, as `str` for SQLite
        self._heads: dict[int, int] = {}
        self._counts: dict[int, int] = {}

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """If the block raises, everything in it is undone, in the store and in this object."""
        changes, size, heads = len(self.changes), self.size, self._heads.copy()
        collections, counts = self._collections.copy(), self._counts.copy()
        newest, indexes, built = self._newest.copy(), self._indexes.copy(), self.indexes_built
        try:
            with self._rows_savepoint():
                yield
        except BaseException:
            del self.changes[changes:], self._texts[changes:]
            self.size = size
            self._heads, self._collections, self._counts = heads, collections, counts
            self._newest, self._indexes, self.indexes_built = newest, indexes, built
            raise

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

    @abstractmethod
    def document(self, collection_id: int, id: str) -> tuple[int, int, bytes] | None:
        """`(rowkey, seq, data)` of a document as this transaction sees it."""

    def expect(self, collection_id: int, documents: Iterable[tuple[str, bytes]]) -> None:
        """Documents `(id, data)` are going to be written: an engine may read together what that needs. It may
        do nothing."""

    def change_data(self, rowkey: int) -> bytes | None:
        """The document of a change in the log, also of one that this transaction has yet to write there."""
        for change in reversed(self.changes):
            if change.database_id << SEQ_BITS | change.seq == rowkey:
                return change.data
        return self._logged_data(rowkey)

    def satisfies(self, data: bytes, question: Question) -> bool:
        """Whether a document matches a question."""
        return question.matches(decode(data))

    def _require_within(self, data: bytes) -> None:
        if self.within is not None and not self.satisfies(data, self.within):
            raise outside_rule()

    def insert(
        self, database_id: int, collection: str, id: str, data: bytes, created: str | None = None
    ) -> int | None:
        """Insert a document and return its seq. If the id is taken, return None and change nothing. `created`:
        its `createdAt`, if that is not now.

        Raises a 409 for a value that exists already at a unique field of the schema, and before that a 403
        `RULE` for a document that is not `within`.
        """
        self._require_within(data)
        collection_id = self.collection_id(database_id, collection, create=True)
        assert collection_id is not None
        seq, text = self._head(database_id) + 1, data.decode()
        rowkey = collection_id << SEQ_BITS | seq
        try:
            self._put((rowkey, collection_id, id, seq, text))
        except Taken:
            return None
        indexes = self._indexes.get(collection_id)
        if indexes is not None:
            try:
                entries = self._entries(collection_id, indexes, rowkey, data)
            except ApiError:
                self._remove(rowkey, id)
                raise
            self._enter(entries)
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
        self.expect(collection_id, documents)
        # A savepoint copies each page before its first change, a tenth of the cost of a bulk. Without unique
        # fields only an id can be taken, and then nothing has been written.
        with suppress(Taken, ApiError), self.savepoint() if unique else nullcontext():
            self._put_many(rows)
            if indexes is not None:
                entries: list[tuple[int, bytes, int]] = []
                for row, (_, data) in zip(rows, documents, strict=True):
                    own = self._entries(collection_id, indexes, row[0], data)
                    if unique:  # at once: the next document is compared with them
                        self._enter(own)
                    else:
                        entries += own
                self._enter(entries)
            return True
        return False

    def update(
        self, database_id: int, collection: str, rowkey: int, id: str, old: bytes, data: bytes, before: bytes
    ) -> int:
        """`before`: the `reverse_patch`. Raises what `insert` does."""
        self._require_within(data)
        text = data.decode()
        collection_id = rowkey >> SEQ_BITS
        indexes = self._indexes.get(collection_id)
        left: list[tuple[int, bytes, int]] = []
        now: list[tuple[int, bytes, int]] = []
        if indexes is not None:
            left = [(index.id, key, rowkey) for index, key in zip(indexes.all, indexes.keys(old), strict=True)]
            now = self._entries(collection_id, indexes, rowkey, data)
        self._replace(rowkey, id, self._head(database_id) + 1, text)
        if left != now:
            self._leave([entry for entry in left if entry not in now])
            self._enter([entry for entry in now if entry not in left])
        return self._record(database_id, "update", collection, id, data, text, before)

    def delete(self, database_id: int, collection: str, rowkey: int, id: str, data: bytes) -> int:
        self._remove(rowkey, id)
        collection_id = rowkey >> SEQ_BITS
        indexes = self._indexes.get(collection_id)
        if indexes is not None:
            keys = zip(indexes.all, indexes.keys(data), strict=True)
            self._leave([(index.id, key, rowkey) for index, key in keys])
        self._count(collection_id, -1)
        return self._record(database_id, "delete", collection, id, data, data.decode())

    def drop_if_empty(self, database_id: int, collection: str, collection_id: int) -> bool:
        """Remove the collection and its indexes if no document is left in it."""
        if self.documents(*span(collection_id), 1):
            return False
        self._set_indexes(collection_id, ())
        self._remove_collection(collection_id)
        self._collections.pop((database_id, collection), None)
        self._counts.pop(collection_id, None)
        return True

    def erase(self, documents: list[tuple[int, str]]) -> None:
        """Remove documents `(row key, id)` of which nothing else will remain: neither a change nor an entry of
        an index."""
        for rowkey, id in documents:
            self._remove(rowkey, id)

    def disorder(self, collection_id: int) -> None:
        """Note that the documents are no longer in order of `createdAt`."""
        self._newest[collection_id] = None
        self._counts.setdefault(collection_id, 0)

    def _head(self, database_id: int) -> int:
        head = self._heads.get(database_id)
        if head is None:
            head = self._heads[database_id] = self.bounds_of(database_id)[0]
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

    # --- rows of documents and of the log --------------------------------------------------------

    @abstractmethod
    def _rows_savepoint(self) -> AbstractContextManager[None]:
        """If the block raises, its rows are undone."""

    @abstractmethod
    def _put(self, row: tuple[int, int, str, int, str]) -> None:
        """Insert a document: `(rowkey, collection_id, id, seq, data)`. Raises `Taken`."""

    @abstractmethod
    def _put_many(self, rows: list[tuple[int, int, str, int, str]]) -> None:
        """Insert all, or none: raises `Taken`. Their row keys are one range, in order."""

    @abstractmethod
    def _replace(self, rowkey: int, id: str, seq: int, data: str) -> None: ...

    @abstractmethod
    def _remove(self, rowkey: int, id: str) -> None: ...

    @abstractmethod
    def _leave(self, entries: list[tuple[int, bytes, int]]) -> None:
        """Remove entries of indexes."""

    @abstractmethod
    def _logged_data(self, rowkey: int) -> bytes | None:
        """The document of a change that was committed."""

    @abstractmethod
    def bounds_of(self, database_id: int) -> tuple[int, int]:
        """The committed `(head, trimmed)` of a database. Raises `database_gone`."""

    def before_newest(self, database_id: int, count: int) -> int:
        """The seq up to which all changes come before the newest `count`."""
        return self.bounds_of(database_id)[0] - count

    @abstractmethod
    def bounds(self) -> dict[int, tuple[int, int]]:
        """Those of every database."""

    @abstractmethod
    def logged(self, database_id: int, after: int, limit: int) -> list[tuple[int, int, int]]:
        """The committed changes after seq `after`, as `(seq, at, size)`."""

    @abstractmethod
    def trim(self, database_id: int, trimmed: int, until: int) -> None:
        """Remove the changes after seq `trimmed` and up to `until`."""

    # --- removals of collections that are not finished ---------------------------------------------

    @abstractmethod
    def drops(self) -> list[tuple[int, str, int]]:
        """`(database_id, collection, until)`: documents inserted up to seq `until` are to be removed."""

    @abstractmethod
    def drop(self, collection_id: int) -> int | None:
        """Its `until`."""

    @abstractmethod
    def set_drop(self, collection_id: int, until: int | None) -> None:
        """None: it is finished."""

    # --- requests, revocations, time ---------------------------------------------------------------

    @abstractmethod
    def recall(self, scope: str, key: str) -> Remembered | None: ...

    @abstractmethod
    def remember(self, scope: str, key: str, request: Remembered) -> None: ...

    @abstractmethod
    def forget_requests(self, before: float, limit: int) -> int:
        """Forget at most `limit` requests that were remembered before a time. Returns how many."""

    @abstractmethod
    def revoke(self, database_id: int, kind: str, name: str, at: int, until: int) -> None:
        """Store a revocation. An earlier one of the same name stays in force up to its own `at`."""

    @abstractmethod
    def forget_revocations(self, until: int, limit: int) -> int:
        """Forget at most `limit` revocations that were needed up to a time before `until`. Returns how many."""

    @abstractmethod
    def keep_time(self, log_time: float, wall_time: float) -> None:
        """Save the time of the log's clock and that of the computer's clock, in seconds."""


def outside_rule() -> ApiError:
    return ApiError(403, "RULE", "The token's rule must hold for the document before and after the write")
