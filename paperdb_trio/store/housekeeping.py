"""Background work, in steps that other writers hardly notice: removing collections, building and removing
indexes, trimming the change log.

Law: the law of `operations` holds here, too. Each step is small, is committed together with other writes, and
may be the last one before a crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, TypeVar

import trio

from paperdb_trio.errors import ApiError
from paperdb_trio.store.indexes import MAX_INDEXES, MAX_MADE, MAX_MADE_KEY
from paperdb_trio.store.operations import Operation
from paperdb_trio.store.protocol import Submits
from paperdb_trio.store.requests import ForgetRequests
from paperdb_trio.store.revocations import ForgetRevocations
from paperdb_trio.store.sqlite.clock import LogClock
from paperdb_trio.store.sqlite.rowkeys import SEQ_BITS, span
from paperdb_trio.store.sqlite.transaction import Transaction

Result = TypeVar("Result")

STEP_BYTES: Final = 4 * 1024 * 1024
"""Bytes that one step removes. Other writes wait some 50 ms for a step."""

INCREMENTAL: Final = 2
"""The value of `PRAGMA auto_vacuum` for a file that can give pages back."""
SPARE_PAGES: Final = 1024
"""Free pages of 4 KiB that stay in the file, for coming writes."""


@dataclass(frozen=True, slots=True)
class DropSome:
    """Delete at most `limit` documents, or `STEP_BYTES`, of a collection that were inserted up to seq `until`.

    A large collection takes several steps, so that other writers never wait long. `until` None means all
    documents that exist now. Returns `(deleted, until, done)`. The last step removes the collection itself.
    Raises a 404 for a collection that does not exist.

    The file records an unfinished drop, so that a later server can finish it. Documents inserted since then
    stay, and so does their collection.
    """

    frees: ClassVar = True

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
        else:  # a second request may have moved it on, or finished the drop
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
    """Returns the next step of each unfinished drop."""

    frees: ClassVar = True

    def apply(self, tx: Transaction) -> list[DropSome]:
        rows = tx.connection.execute(
            "SELECT c.database_id, c.name, d.until FROM drops d JOIN collections c ON c.id=d.collection_id"
        )
        return [DropSome(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class IndexWork:
    """Build or remove some of an index, in 5 to 20 ms. Returns whether there may be more to do.

    Without `build` it only removes, which a full disk allows.
    """

    rows: int = 250
    build: bool = True

    @property
    def frees(self) -> bool:
        return not self.build

    def apply(self, tx: Transaction) -> bool:
        dropped = tx.connection.execute("SELECT min(id) FROM index_drops").fetchone()[0]
        building = None
        if self.build:
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
    """Make an automatic index, if it is new, there is room for it and its keys are short.

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
    """Note which automatic indexes were used, and remove those without use for `UNUSED_DAYS`.

    Returns the removed ones, as `collection: field, field`.
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
    """Return some unused pages to the disk, all but `spare`. Returns whether there may be more.

    The file shrinks at the next checkpoint. A file made by version 0.1 keeps its pages until `paperdb compact`.
    """

    frees: ClassVar = True

    pages: int = 200
    spare: int = SPARE_PAGES

    def apply(self, tx: Transaction) -> bool:
        free, mode = (
            tx.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "auto_vacuum")
        )
        if mode != INCREMENTAL or free <= self.spare:
            return False
        tx.connection.execute(f"PRAGMA incremental_vacuum({min(self.pages, free - self.spare)})").fetchall()
        return True


@dataclass(frozen=True, slots=True)
class KeepTime:
    """Save the time of the log's clock, also on a full disk: the retention depends on it."""

    frees: ClassVar = True

    clock: LogClock

    def apply(self, tx: Transaction) -> None:
        self.clock.keep(tx.connection)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Returns the `(head, trimmed)` of every database."""

    frees: ClassVar = True

    def apply(self, tx: Transaction) -> dict[int, tuple[int, int]]:
        return {id: (head, trimmed) for id, head, trimmed in tx.connection.execute(BOUNDS)}


BOUNDS: Final = "SELECT id, head, trimmed FROM databases"


@dataclass(frozen=True, slots=True)
class Trim:
    """Remove at most `limit`, or `STEP_BYTES`, of a database's oldest changes: those before `cutoff` (seconds
    of `LogClock`), those beyond the newest `keep`, and those up to seq `until`. Returns `(trimmed, removed)`:
    the seq of the newest removed change, and the number of changes that this step removed."""

    frees: ClassVar = True

    database_id: int
    cutoff: float
    keep: int
    limit: int = 250
    until: int = 0

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
            # In files from before `LogClock`, the time may go back between two changes. The log is trimmed in
            # order of seq all the same.
            if at >= cutoff and rowkey - base > max(head - self.keep, self.until):
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


HOUSEKEEPING: Final = (
    Bounds,
    Trim,
    KeepTime,
    ForgetRevocations,
    PendingDrops,
    IndexWork,
    MakeIndex,
    KeepUsedIndexes,
    FreePages,
    ForgetRequests,
)
"""Operations of the server itself. They do not count as users' activity."""


async def until_indexed(store: Submits, operation: Operation[Result | None]) -> Result:
    """Submit an operation until an index that it needs is built. Its result is false until then."""
    while not (result := await store.submit(operation)):
        await store.submit(IndexWork())
    return result


async def finish_drops(store: Submits, pause: float = 0.0) -> None:
    """Finish unfinished drops, with a pause between the steps. Raises what `submit` does."""
    for drop in await store.submit(PendingDrops()):
        done = False
        while not done:
            _, _, done = await store.submit(drop)
            await trio.sleep(pause)
