"""Background work, in steps that other writers hardly notice: removing collections and databases, building and
removing indexes, trimming the change log.

Law: the law of `operations` holds here, too. Each step is small, is committed together with other writes, and
may be the last one before a crash.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, TypeVar

import trio

from paperdb_trio.errors import ApiError
from paperdb_trio.store.administration import Noted
from paperdb_trio.store.clock import LogClock
from paperdb_trio.store.indexes import MAX_INDEXES, MAX_MADE, MAX_MADE_KEY
from paperdb_trio.store.operations import Operation, SetSchema
from paperdb_trio.store.protocol import Submits
from paperdb_trio.store.requests import ForgetRequests, Once
from paperdb_trio.store.revocations import ForgetRevocations
from paperdb_trio.store.rowkeys import span
from paperdb_trio.store.transaction import Transaction
from paperdb_trio.store.webhook_changes import BeginWebhooks, KeepProgress

Result = TypeVar("Result")

STEP_BYTES: Final = 4 * 1024 * 1024
"""Bytes that one step removes. Other writes wait some 50 ms for a step."""


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
            newest = tx.documents(low, high, 1, newest_first=True)
            until = newest[0][0] - low if newest else 0
        else:  # a second request may have moved it on, or finished the drop
            pending = tx.drop(collection_id)
            if pending is None:
                return 0, self.until, True
            until = pending
        found = tx.documents(low, low + until, self.limit, STEP_BYTES)
        for rowkey, id, data in found:
            tx.delete(self.database_id, self.collection, rowkey, id, data)
        done = len(found) < self.limit and sum(len(data) for _, _, data in found) < STEP_BYTES
        if done:
            tx.set_drop(collection_id, None)
            tx.drop_if_empty(self.database_id, self.collection, collection_id)
        elif self.until is None:
            tx.set_drop(collection_id, until)
        return len(found), until, done


@dataclass(frozen=True, slots=True)
class PendingDrops:
    """Returns the next step of each unfinished drop."""

    frees: ClassVar = True

    def apply(self, tx: Transaction) -> list[DropSome]:
        return [DropSome(*drop) for drop in tx.drops()]


@dataclass(frozen=True, slots=True)
class RemoveDeleted:
    """Remove some of a deleted database: its log, its documents, its collections. Returns whether there may be
    more."""

    frees: ClassVar = True

    limit: int = 500

    def apply(self, tx: Transaction) -> bool:
        removed = tx.removal()
        if removed is None:
            return False
        last = size = 0
        for last, _, bytes in tx.logged(removed, 0, self.limit):  # noqa: B007
            size += bytes
            if size >= STEP_BYTES:
                break
        if last:
            tx.trim(removed, 0, last)
            return True
        collection = tx.some_collection(removed)
        if collection is None:
            tx.end_removal(removed)
        else:
            tx.collection_id(removed, collection[1])
            tx.remove_indexes(collection[0])
            found = tx.documents(*span(collection[0]), self.limit, STEP_BYTES)
            tx.erase([(rowkey, id) for rowkey, id, _ in found])
            if not found:
                tx.drop_if_empty(removed, collection[1], collection[0])
        return True


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
        dropped = tx.next_index_drop()
        if dropped is not None:
            tx.drop_entries(dropped, 4 * self.rows, STEP_BYTES)
            return True
        building = tx.next_index_build() if self.build else None
        if building is not None:
            tx.build_some(building, self.rows, STEP_BYTES // 4)
        return building is not None


@dataclass(frozen=True, slots=True)
class MakeIndex:
    """Make an automatic index, if it is new, there is room for it and its keys are short.

    Returns whether it was made.
    """

    database_id: int
    collection: str
    fields: tuple[str, ...]
    today: int | None = None
    """Days since the epoch; None: those of the log's clock."""

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
        today = tx.today if self.today is None else self.today
        tx.add_index(collection_id, self.fields, unique=False, made=True, used=today)
        return True


@dataclass(frozen=True, slots=True)
class KeepUsedIndexes:
    """Note which automatic indexes were used, and remove those without use for `UNUSED_DAYS`.

    Returns the removed ones, as `collection: field, field`.
    """

    used: frozenset[int]
    today: int | None = None
    """As in `MakeIndex`."""

    def apply(self, tx: Transaction) -> list[str]:
        removed = []
        today = tx.today if self.today is None else self.today
        for database_id, name in tx.collections_with_made_indexes():
            collection_id = tx.collection_id(database_id, name)
            assert collection_id is not None
            removed += [
                f"{name}: {', '.join(index.fields)}" for index in tx.keep_used(collection_id, self.used, today)
            ]
        return removed


@dataclass(frozen=True, slots=True)
class KeepTime:
    """Save the time of the log's clock, also on a full disk: the retention depends on it."""

    frees: ClassVar = True

    clock: LogClock

    def apply(self, tx: Transaction) -> None:
        tx.keep_time(self.clock.now(), time.time())


@dataclass(frozen=True, slots=True)
class Bounds:
    """Returns the `(head, trimmed)` of every database."""

    frees: ClassVar = True

    def apply(self, tx: Transaction) -> dict[int, tuple[int, int]]:
        return tx.bounds()


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
        try:
            _, trimmed = tx.bounds_of(self.database_id)
        except ApiError:  # it has been deleted
            return 0, 0
        surplus = max(tx.before_newest(self.database_id, self.keep), self.until)
        cutoff = self.cutoff * 1000
        last, removable, removed = trimmed, 0, 0
        for seq, at, size in tx.logged(self.database_id, trimmed, self.limit):
            # In files from before `LogClock`, the time may go back between two changes. The log is trimmed in
            # order of seq all the same.
            if at >= cutoff and seq > surplus:
                break
            last = seq
            removable += 1
            removed += size
            if removed >= STEP_BYTES:
                break
        if removable:
            tx.trim(self.database_id, trimmed, last)
        return last, removable


@dataclass(frozen=True, slots=True)
class KeepUsedKeys:
    """Note when keys were used, in milliseconds since the epoch."""

    used: dict[str, int]

    def apply(self, tx: Transaction) -> None:
        tx.note_used(self.used)


HOUSEKEEPING: Final = (
    Bounds,
    Trim,
    KeepTime,
    ForgetRevocations,
    PendingDrops,
    RemoveDeleted,
    KeepUsedKeys,
    IndexWork,
    MakeIndex,
    KeepUsedIndexes,
    ForgetRequests,
    BeginWebhooks,
    KeepProgress,
)
"""Operations of the server itself. They do not count as users' activity."""


async def until_indexed(store: Submits, operation: Operation[Result | None]) -> Result:
    """Submit an operation until an index that it needs is built. Its result is false until then."""
    while not (result := await store.submit(operation)):
        operation = _begun(operation)
        await store.submit(IndexWork())
    return result


def _begun(operation: Operation[Any]) -> Operation[Any]:
    if isinstance(operation, Once | Noted) and operation.operation is not None:
        return replace(operation, operation=_begun(operation.operation))
    return replace(operation, begun=True) if isinstance(operation, SetSchema) else operation


async def finish_drops(store: Submits, pause: float = 0.0) -> None:
    """Finish unfinished drops, with a pause between the steps. Raises what `submit` does."""
    for drop in await store.submit(PendingDrops()):
        done = False
        while not done:
            _, _, done = await store.submit(drop)
            await trio.sleep(pause)
