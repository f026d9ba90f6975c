"""Documents out of a PostgreSQL database, for `paperdb export`. See `store.transfer`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from paperdb_trio.store import transfer
from paperdb_trio.store.catalog import AT_ONCE_BYTES
from paperdb_trio.store.postgres.documents import documents_sql
from paperdb_trio.store.postgres.prepare import prepare, telling
from paperdb_trio.store.rowkeys import span

ROWS = 1000
"""Documents that one round trip reads."""


def export(url: str, databases: tuple[str, ...], collections: tuple[str, ...]) -> Iterator[bytes]:
    """The lines of all documents and schemas at one moment: see `transfer.export`."""
    with closing(prepare(url)) as session, telling("PostgreSQL refused to read"):
        session.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        rows = session.query(
            "SELECT d.name, c.name, c.id, c.schema FROM databases d LEFT JOIN collections c "
            "ON c.database_id=d.id ORDER BY d.id, c.name"
        )
        found = [
            (database.decode(), name and name.decode(), id, schema and schema.decode())
            for database, name, id, schema in rows
        ]

        def documents(id: int) -> Iterator[bytes]:
            low, high = span(id)
            while page := session.query(documents_sql("ASC"), low, high, ROWS, AT_ONCE_BYTES):
                for _, _, data in page:
                    yield data
                low = page[-1][0] + 1

        yield from transfer.export(found, documents, databases, collections)
