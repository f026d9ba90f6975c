"""Copying a whole store into an empty one, of the same engine or the other: `paperdb copy`.

Law: everything keeps its ids, seqs and row keys, so that cursors, keys, tokens and page tokens stay good. The
source is read in one snapshot, the target written in one transaction. Entries of indexes are made anew, since
each engine stores keys in its own way.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from paperdb_trio.errors import StartupError
from paperdb_trio.store.indexes import IndexSet, stored_indexes
from paperdb_trio.store.rowkeys import JUMP, jump_base

BATCH_ROWS: Final = 1000

TABLES: Final = {
    "meta": "name:t value:i",
    "databases": "id:i name:t plan:t created_at:t head:i trimmed:i",
    "keys": "id:t database_id:i kind:t label:t hash:b created_at:t revoked_at:t expires_at:i last_used_at:i",
    "signing_secrets": "kid:t secret:b created_at:f retired_at:f",
    "collections": "id:i database_id:i name:t documents:i schema:t indexes:t newest:t",
    "index_builds": "id:i collection_id:i rowkey:i",
    "drops": "collection_id:i until:i",
    "database_drops": "id:i",
    "requests": "id:i at:i scope:t key:t digest:b response:t body:b change:i",
    "webhooks": "id:t database_id:i url:t collection:t filter:t secret:t created_at:t generation:i cursor:i "
    "until:i failures:i error:t failing_since:i delivered_at:i dead_at:i",
    "revocations": "id:i database_id:i kind:t name:t at:i until:i",
    "audit": "id:i at:i by:t action:t database:t target:t details:t",
    "documents": "rowkey:i collection_id:i id:t seq:i data:t",
    "changes": "rowkey:i at:i size:i type:t collection:t data:t id:t before:t txn:i",
}
"""The columns of each table, with their types (integer, text, bytes, float). The first one is a key. Of `meta`,
only the log's clock."""
META: Final = "(SELECT * FROM meta WHERE name IN ('log_time','wall_time')) t"

Entry = tuple[int, bytes, int]


class Did(NamedTuple):
    """Who did what to a whole store, and with what, for the record."""

    by: str
    action: str
    target: str


def columns(table: str) -> list[tuple[str, str]]:
    """Names and types."""
    pairs = (column.split(":") for column in TABLES[table].split())
    return [(name, type) for name, type in pairs]


class Copyable(ABC):
    """A store that is opened for a copy. `close` it."""

    @abstractmethod
    def is_empty(self) -> bool: ...

    @abstractmethod
    def rows(self, table: str) -> Iterator[list[tuple[Any, ...]]]:
        """All rows, in batches. Texts are `str`."""

    @abstractmethod
    def write(self, table: str, rows: list[tuple[Any, ...]]) -> None: ...

    @abstractmethod
    def enter(self, entries: list[Entry]) -> None: ...

    @abstractmethod
    def commit(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def told(self, error: Exception) -> StartupError | None:
        """An error of its engine, for the operator."""


def copy(source: Copyable, target: Copyable, did: Did | None = None, *, anew: bool = False) -> dict[str, int]:
    """Returns the number of rows of each table. `did` is recorded in the target. `anew`: without the change
    logs, which begin anew beyond every seq that a client can have seen, as a backup is restored. Raises a
    `StartupError` for a target that is not empty, and for what an engine refuses."""
    try:
        return _copy(source, target, did, anew)
    except Exception as error:
        told = source.told(error) or target.told(error)
        if told is None:
            raise
        raise told from None


def _copy(source: Copyable, target: Copyable, did: Did | None, anew: bool) -> dict[str, int]:
    if not target.is_empty():
        raise StartupError("The target is not empty: expected a new directory or PostgreSQL database")
    if source.is_empty():
        raise StartupError("The source is empty: there is nothing to copy")
    indexes: dict[int, IndexSet] = {}
    building: dict[int, int] = {}  # how far, by row keys
    recorded = 0
    counts = dict.fromkeys(TABLES, 0)
    for table in TABLES:
        for rows in source.rows(table) if not (anew and table == "changes") else ():
            if anew and table == "databases":
                rows = [(*row[:4], head, head) for row in rows for head in (_beyond(row[4]),)]
            target.write(table, rows)
            counts[table] += len(rows)
            if table == "collections":
                indexes |= {row[0]: stored_indexes(row[5]) for row in rows if row[5] is not None}
            if table == "index_builds":
                building |= {row[0]: row[2] for row in rows}
            if table == "audit":
                recorded = rows[-1][0]
            if table == "documents":
                target.enter(
                    [
                        (index.id, key, row[0])
                        for row in rows
                        if (own := indexes.get(row[1])) is not None
                        for index, key in zip(own.all, own.keys(row[4].encode()), strict=True)
                        if row[0] <= building.get(index.id, row[0])
                    ]
                )
    if did is not None:
        now = int(time.time() * 1000)
        target.write("audit", [(recorded + 1, now, did.by, did.action, None, did.target, "{}")])
    target.commit()
    return counts


def _beyond(head: int) -> int:
    return max(head, jump_base(time.time())) + JUMP
