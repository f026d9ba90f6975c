"""Collections, their schemas and their indexes, as rows of a write transaction.

Law: that of `rows`. They are written at once: they change rarely.
"""

from __future__ import annotations

from typing import Final

from paperdb_trio.store.catalog import CollectionRow
from paperdb_trio.store.postgres.rows import Rows
from paperdb_trio.store.postgres.wire import Row, Texts
from paperdb_trio.store.rowkeys import span

COLLECTIONS: Final = (
    "SELECT c.id, c.schema, c.indexes, n.newest, c.name FROM unnest($2::text[]) u(name) "
    "JOIN collections c ON c.database_id=$1 AND c.name=u.name JOIN counts n ON n.collection_id=c.id"
)


class Catalog(Rows):
    # --- collections -------------------------------------------------------------------------------

    def _collection(self, database_id: int, name: str) -> CollectionRow | None:
        self._lock(database_id)
        key = (database_id, name)
        if key not in self._rows:
            found = self._query(COLLECTIONS, database_id, Texts([name]))
            self._rows[key] = collection_row(found[0]) if found else None
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


def collection_row(row: Row) -> CollectionRow:
    id, schema, indexes, newest = row[:4]
    return CollectionRow(
        id,
        None if schema is None else schema.decode(),
        None if indexes is None else indexes.decode(),
        None if newest is None else newest.decode(),
    )
