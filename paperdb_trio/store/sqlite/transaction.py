"""The rows of a write transaction in SQLite.

Law: it runs only on the writer's thread, between BEGIN IMMEDIATE and COMMIT.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from paperdb_trio.store import keys, transaction
from paperdb_trio.store.catalog import AT_ONCE_BYTES, CollectionRow, Value
from paperdb_trio.store.indexes import Index, parse_field
from paperdb_trio.store.refusals import database_gone
from paperdb_trio.store.rowkeys import SEQ_BITS, span
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.question import field as query_field
from paperdb_trio.store.sqlite.question import json_path, unique_condition
from paperdb_trio.store.sqlite.registry import Registry
from paperdb_trio.store.transaction import Remembered, Taken

_PUT: Final = "INSERT INTO documents VALUES (?,?,?,?,jsonb(?))"
_KIND_OF_TYPE: Final = {"integer": "number", "real": "number"} | {
    type: type for type in ("null", "true", "false", "text", "array", "object")
}


class Transaction(Registry, transaction.Transaction):
    def __init__(self, connection: sqlite.Connection, now: float, log_time: float) -> None:
        super().__init__(now, log_time)
        self.connection = connection

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

    def _rows_savepoint(self) -> AbstractContextManager[None]:
        return _savepoint(self.connection)

    # --- documents -------------------------------------------------------------------------------

    def document(self, collection_id: int, id: str) -> tuple[int, int, bytes] | None:
        row = self.connection.execute(
            "SELECT rowkey, seq, json(data) FROM documents WHERE collection_id=? AND id=?",
            (collection_id, id),
        ).fetchone()
        return None if row is None else (row[0], row[1], row[2].encode())

    def documents(
        self, low: int, high: int, limit: int, max_bytes: int = AT_ONCE_BYTES, *, newest_first: bool = False
    ) -> list[tuple[int, str, bytes]]:
        order = "DESC" if newest_first else "ASC"
        rows = self.connection.execute(
            "SELECT rowkey, id, json(data) FROM documents WHERE rowkey BETWEEN ? AND ? "
            f"ORDER BY rowkey {order} LIMIT ?",
            (low, high, limit),
        )
        found, size = [], 0
        for rowkey, id, text in rows:
            found.append((rowkey, id, text.encode()))
            size += len(found[-1][2])
            if size >= max_bytes:
                break
        rows.close()
        return found

    def _put(self, row: tuple[int, int, str, int, str]) -> None:
        try:
            self.connection.execute(_PUT, row)
        except sqlite.ConstraintError:
            raise Taken from None

    def _put_many(self, rows: list[tuple[int, int, str, int, str]]) -> None:
        try:
            self.connection.executemany(_PUT, rows)
        except sqlite.ConstraintError:
            self.connection.execute(
                "DELETE FROM documents WHERE rowkey BETWEEN ? AND ?", (rows[0][0], rows[-1][0])
            )
            raise Taken from None

    def _replace(self, rowkey: int, id: str, seq: int, data: str) -> None:
        self.connection.execute("UPDATE documents SET data=jsonb(?), seq=? WHERE rowkey=?", (data, seq, rowkey))

    def _remove(self, rowkey: int, id: str) -> None:
        self.connection.execute("DELETE FROM documents WHERE rowkey=?", (rowkey,))

    # --- collections -----------------------------------------------------------------------------

    def _collection(self, database_id: int, name: str) -> CollectionRow | None:
        row = self.connection.execute(
            "SELECT id, schema, indexes, newest FROM collections WHERE database_id=? AND name=?",
            (database_id, name),
        ).fetchone()
        return None if row is None else CollectionRow(*row)

    def _new_collection(self, database_id: int, name: str) -> int:
        row = self.connection.execute(
            "INSERT INTO collections (database_id, name) SELECT id, ?2 FROM databases WHERE id=?1 RETURNING id",
            (database_id, name),
        ).fetchone()
        if row is None:
            raise database_gone()
        return int(row[0])

    def _remove_collection(self, collection_id: int) -> None:
        self.connection.execute("DELETE FROM collections WHERE id=?", (collection_id,))

    def _name(self, collection_id: int) -> tuple[int, str]:
        found: tuple[int, str] = self.connection.execute(
            "SELECT database_id, name FROM collections WHERE id=?", (collection_id,)
        ).fetchone()
        return found

    def _has_at_most(self, collection_id: int, documents: int) -> bool:
        (found,) = self.connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM documents WHERE rowkey BETWEEN ? AND ? LIMIT ?)",
            (*span(collection_id), documents + 1),
        ).fetchone()
        return bool(found <= documents)

    def _save_schema(self, collection_id: int, text: str | None) -> None:
        self.connection.execute("UPDATE collections SET schema=? WHERE id=?", (text, collection_id))

    def drops(self) -> list[tuple[int, str, int]]:
        found: list[tuple[int, str, int]] = self.connection.execute(
            "SELECT c.database_id, c.name, d.until FROM drops d JOIN collections c ON c.id=d.collection_id"
        ).fetchall()
        return found

    def drop(self, collection_id: int) -> int | None:
        row = self.connection.execute(
            "SELECT until FROM drops WHERE collection_id=?", (collection_id,)
        ).fetchone()
        return None if row is None else row[0]

    def set_drop(self, collection_id: int, until: int | None) -> None:
        if until is None:
            self.connection.execute("DELETE FROM drops WHERE collection_id=?", (collection_id,))
        else:
            self.connection.execute("INSERT OR REPLACE INTO drops VALUES (?,?)", (collection_id, until))

    # --- indexes ---------------------------------------------------------------------------------

    def collections_with_made_indexes(self) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = self.connection.execute(
            "SELECT database_id, name FROM collections WHERE indexes LIKE '%\"made\":true%'"
        ).fetchall()
        return found

    def next_index_drop(self) -> int | None:
        (id,) = self.connection.execute("SELECT min(id) FROM index_drops").fetchone()
        return None if id is None else int(id)

    def next_index_build(self) -> int | None:
        (id,) = self.connection.execute("SELECT min(id) FROM index_builds").fetchone()
        return None if id is None else int(id)

    def drop_entries(self, index_id: int, limit: int, max_bytes: int) -> None:
        entries = size = 0
        sizes = "SELECT length(key) FROM entries WHERE index_id=? LIMIT ?"
        for (length,) in self.connection.execute(sizes, (index_id, limit)).fetchall():
            entries += 1
            size += length
            if size >= max_bytes:
                break
        self.connection.execute(
            "DELETE FROM entries WHERE index_id=?1 AND (key, rowkey) IN "
            "(SELECT key, rowkey FROM entries WHERE index_id=?1 LIMIT ?2)",
            (index_id, entries),
        )
        if entries < limit and size < max_bytes:
            self.connection.execute("DELETE FROM index_drops WHERE id=?", (index_id,))

    def _save_indexes(self, collection_id: int, text: str | None) -> None:
        self.connection.execute("UPDATE collections SET indexes=? WHERE id=?", (text, collection_id))

    def _begin_build(self, collection_id: int, rowkey: int) -> int:
        (id,) = self.connection.execute(
            "INSERT INTO index_builds (collection_id, rowkey) VALUES (?,?) RETURNING id",
            (collection_id, rowkey),
        ).fetchone()
        return int(id)

    def _build(self, id: int) -> tuple[int, int]:
        found: tuple[int, int] = self.connection.execute(
            "SELECT collection_id, rowkey FROM index_builds WHERE id=?", (id,)
        ).fetchone()
        return found

    def _continue_build(self, id: int, rowkey: int) -> None:
        self.connection.execute("UPDATE index_builds SET rowkey=? WHERE id=?", (rowkey, id))

    def _end_build(self, id: int) -> None:
        self.connection.execute("DELETE FROM index_builds WHERE id=?", (id,))

    def _drop_index(self, id: int) -> None:
        self.connection.execute("INSERT INTO index_drops VALUES (?)", (id,))

    def _enter(self, entries: list[tuple[int, bytes, int]]) -> None:
        self.connection.executemany("INSERT OR IGNORE INTO entries VALUES (?,?,?)", entries)

    def _leave(self, entries: list[tuple[int, bytes, int]]) -> None:
        self.connection.executemany("DELETE FROM entries WHERE index_id=? AND key=? AND rowkey=?", entries)

    def _holders(self, index: Index, key: bytes, rowkey: int) -> Iterable[str]:
        return self._kinds(
            "SELECT json_type(data,?) FROM entries e JOIN documents d ON d.rowkey=e.rowkey "
            "WHERE e.index_id=? AND e.key=? AND e.rowkey<>?",
            (json_path(index.path), index.id, key, rowkey),
        )

    def _holders_unindexed(self, collection_id: int, index: Index, value: Any, rowkey: int) -> Iterable[str]:
        at = query_field(index.path)
        return self._kinds(
            f"SELECT {at.type} FROM documents WHERE rowkey>=? AND rowkey<=? AND rowkey<>? AND {at.value}=?",
            (*span(collection_id), rowkey, keys.sortable(value)),
        )

    def _kinds(self, sql: str, parameters: tuple[Any, ...]) -> Iterable[str]:
        return (_KIND_OF_TYPE[type] for (type,) in self.connection.execute(sql, parameters))

    def _has_value(self, collection_id: int, index: Index | None, field: str, value: Value) -> bool:
        condition, parameters = unique_condition(field, value)
        if index is None:
            found = self.connection.execute(
                f"SELECT 1 FROM documents WHERE rowkey>=? AND rowkey<=? AND {condition} LIMIT 1",
                (*span(collection_id), *parameters),
            )
        else:
            descending = parse_field(index.fields[0]).descending
            found = self.connection.execute(
                "SELECT 1 FROM entries e CROSS JOIN documents d ON d.rowkey=e.rowkey WHERE e.index_id=? "
                f"AND e.key>=? AND e.key<? AND {condition} LIMIT 1",
                (index.id, *keys.interval(b"", keys.point(value), descending=descending), *parameters),
            )
        return found.fetchone() is not None

    # --- the change log ----------------------------------------------------------------------------

    def _logged_data(self, rowkey: int) -> bytes | None:
        row = self.connection.execute("SELECT data FROM changes WHERE rowkey=?", (rowkey,)).fetchone()
        return None if row is None else row[0].encode()

    def bounds_of(self, database_id: int) -> tuple[int, int]:
        found: tuple[int, int] | None = self.connection.execute(
            "SELECT head, trimmed FROM databases WHERE id=?", (database_id,)
        ).fetchone()
        if found is None:
            raise database_gone()
        return found

    def bounds(self) -> dict[int, tuple[int, int]]:
        return bounds(self.connection)

    def logged(self, database_id: int, after: int, limit: int) -> list[tuple[int, int, int]]:
        base, last = span(database_id)
        rows = self.connection.execute(
            "SELECT rowkey, at, size FROM changes WHERE rowkey>? AND rowkey<=? ORDER BY rowkey LIMIT ?",
            (base | after, last, limit),
        )
        return [(rowkey - base, at, size) for rowkey, at, size in rows]

    def trim(self, database_id: int, trimmed: int, until: int) -> None:
        base, _ = span(database_id)
        self.connection.execute(
            "DELETE FROM changes WHERE rowkey>? AND rowkey<=?", (base | trimmed, base | until)
        )
        self.connection.execute("UPDATE databases SET trimmed=? WHERE id=?", (until, database_id))

    # --- requests, revocations, time ---------------------------------------------------------------

    def recall(self, scope: str, key: str) -> Remembered | None:
        row = self.connection.execute(
            "SELECT at, digest, response, body, change FROM requests WHERE scope=? AND key=?", (scope, key)
        ).fetchone()
        return None if row is None else Remembered(*row)

    def remember(self, scope: str, key: str, request: Remembered) -> None:
        self.connection.execute(
            "INSERT OR REPLACE INTO requests (scope, key, at, digest, response, body, change) "
            "VALUES (?,?,?,?,?,?,?)",
            (scope, key, *request),
        )

    def forget_requests(self, before: float, limit: int) -> int:
        (forgotten,) = self.connection.execute(
            "SELECT count(*) FROM (SELECT at FROM requests ORDER BY id LIMIT ?) WHERE at<?", (limit, before)
        ).fetchone()
        self.connection.execute(
            "DELETE FROM requests WHERE id IN (SELECT id FROM requests ORDER BY id LIMIT ?)", (forgotten,)
        )
        return int(forgotten)

    def revoke(self, database_id: int, kind: str, name: str, at: int, until: int) -> None:
        self.connection.execute(
            # A clock that was set back must not take back an earlier revocation.
            "INSERT OR REPLACE INTO revocations (database_id, kind, name, at, until) VALUES (?1,?2,?3,max(?4,"
            "ifnull((SELECT at FROM revocations WHERE (database_id, kind, name)=(?1,?2,?3)),0)),?5)",
            (database_id, kind, name, at, until),
        )
        self.tell_servers()

    def forget_revocations(self, until: int, limit: int) -> int:
        self.connection.execute(
            "DELETE FROM revocations WHERE id IN (SELECT id FROM revocations WHERE until<? LIMIT ?)",
            (until, limit),
        )
        return self.connection.changes()

    def keep_time(self, log_time: float, wall_time: float) -> None:
        for name, seconds in (("log_time", log_time), ("wall_time", wall_time)):
            self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (name, int(seconds * 1000)))


def bounds(connection: sqlite.Connection) -> dict[int, tuple[int, int]]:
    """`(head, trimmed)` of every database."""
    rows = connection.execute("SELECT id, head, trimmed FROM databases")
    return {id: (head, trimmed) for id, head, trimmed in rows}


@contextmanager
def _savepoint(connection: sqlite.Connection) -> Iterator[None]:
    connection.execute("SAVEPOINT operation")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # SQLite ends it itself if the disk is full
            connection.execute("ROLLBACK TO operation")
            connection.execute("RELEASE operation")
        raise
    connection.execute("RELEASE operation")
