"""Documents out of a file, for `paperdb export`. See `store.transfer`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from paperdb_trio.store import transfer
from paperdb_trio.store.rowkeys import span
from paperdb_trio.store.sqlite.file import connect


def export(file: Path, databases: tuple[str, ...], collections: tuple[str, ...]) -> Iterator[bytes]:
    """The lines of all documents and schemas at one moment: see `transfer.export`."""
    with closing(connect(file, read_only=True)) as connection:
        connection.execute("BEGIN")
        found = connection.execute(
            "SELECT d.name, c.name, c.id, c.schema FROM databases d LEFT JOIN collections c "
            "ON c.database_id=d.id ORDER BY d.id, c.name"
        ).fetchall()

        def documents(id: int) -> Iterator[bytes]:
            for (data,) in connection.execute(
                "SELECT json(data) FROM documents WHERE rowkey BETWEEN ? AND ? ORDER BY rowkey", span(id)
            ):
                yield data.encode()

        yield from transfer.export(found, documents, databases, collections)
