"""What goes on in the background, in steps that other writers hardly notice: removing collections, building and
removing indexes, cutting the change log.

Law: that of `operations`. Each step is small, is committed with the writes of others, and may be the last one
before a crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from paperdb_trio.errors import ApiError
from paperdb_trio.store.clock import LogClock
from paperdb_trio.store.indexes import MAX_INDEXES, MAX_MADE, MAX_MADE_KEY
from paperdb_trio.store.rowkeys import SEQ_BITS, span
from paperdb_trio.store.transaction import Transaction

STEP_BYTES: Final = 4 * 1024 * 1024
"""Bytes that one step removes. Other writes wait for a step, some 50 ms."""

INCREMENTAL: Final = 2
"""What `PRAGMA auto_vacuum` says of a file that can give pages back."""
SPARE_PAGES: Final = 1024
"""Free pages of 4 KiB that stay in the file, for what comes next."""


@dataclass(frozen=True, slots=True)
class DropSome:
    """Delete at most `limit` documents, or `STEP_BYTES`, of a collection that were inserted up to seq `until`.

    A large collection goes in several of these, so that other writers wait for none of them long.
    `until` None means: all that are there now. Returns `(deleted, until, done)`; the last step removes the
    collection itself. Raises a 404 for a collection that does not exist.

    What is begun is in the file: whoever finds it there goes on, be it a server that comes later. Documents
    that were inserted since stay, and so does the collection then.
    """

    database_id: int
    collection: str
    until: int | None
    limit: int = 500

    def apply(self, tx: Transaction) -> tuple[int, int, bool]:
        collection_id = tx.collection_id(self.database_id, self.collection)
        if collection_id is None:
            if self.until is not None:
                return 0, self.until, True
            raise ApiError(404, "NOT_FOUND", f"There is no collection '{self.collection}'")
        low, high = span(collection_id)
        if self.until is None:
            (last,) = tx.connection.execute(
                "SELECT max(rowkey) FROM documents WHERE rowkey BETWEEN ? AND ?", (low, high)
            ).fetchone()
            until = (last or low) - low
        else:  # perhaps by now that of a second request; none: another one is through with it
            row = tx.connection.execute(
                "SELECT until FROM drops WHERE collection_id=?", (collection_id,)
            ).fetchone()
            if row is None:
                return 0, self.until, True
            (until,) = row
        found = tx.connection.execute(
            "SELECT rowkey, id, json(data) FROM documents WHERE rowkey BETWEEN ? AND ? ORDER BY rowkey LIMIT ?",
            (low, low + until, self.limit),
        )
        rows, size = [], 0
        for row in found:
            rows.append(row)
            size += len(row[2])
            if size >= STEP_BYTES:
                break
        found.close()
        for rowkey, id, data in rows:
            tx.delete(self.database_id, self.collection, rowkey, id, data.encode())
        done = len(rows) < self.limit and size < STEP_BYTES
        if done:
            tx.connection.execute("DELETE FROM drops WHERE collection_id=?", (collection_id,))
            tx.drop_if_empty(self.database_id, self.collection, collection_id)
        elif self.until is None:
            tx.connection.execute("INSERT OR REPLACE INTO drops VALUES (?,?)", (collection_id, until))
        return len(rows), until, done


@dataclass(frozen=True, slots=True)
class PendingDrops:
    """Asks for the next step of every collection whose removal was begun and not finished."""

    def apply(self, tx: Transaction) -> list[DropSome]:
        rows = tx.connection.execute(
            "SELECT c.database_id, c.name, d.until FROM drops d JOIN collections c ON c.id=d.collection_id"
        )
        return [DropSome(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class IndexWork:
    """A step of building or removing indexes, some 10 ms; returns whether there is more to do."""

    rows: int = 500

    def apply(self, tx: Transaction) -> bool:
        dropped = tx.connection.execute("SELECT min(id) FROM index_drops").fetchone()[0]
        building = tx.connection.execute("SELECT min(id) FROM index_builds").fetchone()[0]
        if dropped is not None:
            entries = size = 0
            sizes = "SELECT length(key) FROM entries WHERE index_id=? LIMIT ?"
            for (length,) in tx.connection.execute(sizes, (dropped, 4 * self.rows)).fetchall():
                entries += 1
                size += length
                if size >= STEP_BYTES:
                    break
            tx.connection.execute(
                "DELETE FROM entries WHERE index_id=?1 AND (key, rowkey) IN "
                "(SELECT key, rowkey FROM entries WHERE index_id=?1 LIMIT ?2)",
                (dropped, entries),
            )
            if entries < 4 * self.rows and size < STEP_BYTES:
                tx.connection.execute("DELETE FROM index_drops WHERE id=?", (dropped,))
        elif building is not None:
            tx.build_some(building, self.rows, STEP_BYTES // 4)
        return dropped is not None or building is not None


@dataclass(frozen=True, slots=True)
class MakeIndex:
    """Make an index of the server's own accord, if it is new, there is room for it, and its keys are short.

    Returns whether it was made.
    """

    database_id: int
    collection: str
    fields: tuple[str, ...]
    today: int

    def apply(self, tx: Transaction) -> bool:
        collection_id = tx.collection_id(self.database_id, self.collection)
        if collection_id is None:
            return False
        indexes = tx.indexes(collection_id)
        if (
            len(indexes) >= MAX_INDEXES
            or sum(index.made for index in indexes) >= MAX_MADE
            or any(index.fields == self.fields for index in indexes)
            or tx.key_bytes(collection_id, self.fields) > MAX_MADE_KEY
        ):
            return False
        tx.add_index(collection_id, self.fields, unique=False, made=True, used=self.today)
        return True


@dataclass(frozen=True, slots=True)
class KeepUsedIndexes:
    """Note the use of indexes that the server made, and remove those of `UNUSED_DAYS` without any.

    Returns which went, as `collection: field, field`.
    """

    used: frozenset[int]
    today: int

    def apply(self, tx: Transaction) -> list[str]:
        removed = []
        rows = tx.connection.execute(
            "SELECT database_id, name FROM collections WHERE indexes LIKE '%\"made\":true%'"
        ).fetchall()
        for database_id, name in rows:
            collection_id = tx.collection_id(database_id, name)
            assert collection_id is not None
            removed += [
                f"{name}: {', '.join(index.fields)}"
                for index in tx.keep_used(collection_id, self.used, self.today)
            ]
        return removed


@dataclass(frozen=True, slots=True)
class FreePages:
    """Give back to the disk some of the pages that nothing uses, all but `SPARE_PAGES`; whether there are more.

    The file gets shorter at the next checkpoint. Files of 0.1 keep theirs until `paperdb compact`.
    """

    pages: int = 200

    def apply(self, tx: Transaction) -> bool:
        free, mode = (
            tx.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "auto_vacuum")
        )
        if mode != INCREMENTAL or free <= SPARE_PAGES:
            return False
        tx.connection.execute(f"PRAGMA incremental_vacuum({min(self.pages, free - SPARE_PAGES)})").fetchall()
        return True


@dataclass(frozen=True, slots=True)
class KeepTime:
    """Write down what the log's clock says."""

    clock: LogClock

    def apply(self, tx: Transaction) -> None:
        self.clock.keep(tx.connection)


@dataclass(frozen=True, slots=True)
class Trim:
    """Remove at most `limit`, or `STEP_BYTES`, of a database's oldest changes: those of before `cutoff`
    (seconds of `LogClock`) and those beyond the newest `keep`. Returns `(trimmed, removed)`: the seq of
    the newest change that is gone for ever, and how many this step took."""

    database_id: int
    cutoff: float
    keep: int
    limit: int = 250

    def apply(self, tx: Transaction) -> tuple[int, int]:
        head, trimmed = tx.connection.execute(
            "SELECT head, trimmed FROM databases WHERE id=?", (self.database_id,)
        ).fetchone()
        base, _ = span(self.database_id)
        rows = tx.connection.execute(
            "SELECT rowkey, at, size FROM changes WHERE rowkey>? AND rowkey<=? ORDER BY rowkey LIMIT ?",
            (base | trimmed, base | head, self.limit),
        ).fetchall()
        cutoff = self.cutoff * 1000
        removable = removed = 0
        for rowkey, at, size in rows:
            # Before there was a `LogClock`, time may have been set back between two changes; the log is cut in
            # order of seq all the same.
            if at >= cutoff and rowkey - base > head - self.keep:
                break
            removable += 1
            removed += size
            if removed >= STEP_BYTES:
                break
        if not removable:
            return trimmed, 0
        last = rows[removable - 1][0]
        tx.connection.execute("DELETE FROM changes WHERE rowkey>? AND rowkey<=?", (base | trimmed, last))
        trimmed = last & ((1 << SEQ_BITS) - 1)
        tx.connection.execute("UPDATE databases SET trimmed=? WHERE id=?", (trimmed, self.database_id))
        return trimmed, removable


HOUSEKEEPING: Final = (Trim, KeepTime, PendingDrops, IndexWork, MakeIndex, KeepUsedIndexes, FreePages)
"""What the server does of its own accord, also when nobody asks for anything: no activity of users."""
