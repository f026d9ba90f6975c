"""A data directory as a source or a target of `paperdb copy`. See `store.copying`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paperdb_trio.errors import StartupError
from paperdb_trio.files import EXIT_UNWRITABLE
from paperdb_trio.store.copying import BATCH_ROWS, META, Copyable, Entry, columns
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.file import EXIT_CORRUPT, connect, told


class Directory(Copyable):
    def __init__(self, file: Path, *, read_only: bool) -> None:
        self._file = file
        self._connection = connect(file, read_only=read_only)
        self._connection.execute("BEGIN" if read_only else "BEGIN IMMEDIATE")

    def is_empty(self) -> bool:
        return self._connection.execute("SELECT 1 FROM signing_secrets").fetchone() is None

    def rows(self, table: str) -> Iterator[list[tuple[Any, ...]]]:
        names = ["json(data)" if (table, name) == ("documents", "data") else name for name, _ in columns(table)]
        source = META if table == "meta" else table
        found = self._connection.execute(f"SELECT {','.join(names)} FROM {source} ORDER BY {names[0]}")
        batch: list[tuple[Any, ...]] = []
        for row in found:
            batch.append(row)
            if len(batch) == BATCH_ROWS:
                yield batch
                batch = []
        if batch:
            yield batch

    def write(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        names = [name for name, _ in columns(table)]
        places = ["jsonb(?)" if (table, name) == ("documents", "data") else "?" for name in names]
        self._connection.executemany(
            f"INSERT INTO {table} ({','.join(names)}) VALUES ({','.join(places)})", rows
        )

    def enter(self, entries: list[Entry]) -> None:
        self._connection.executemany("INSERT INTO entries VALUES (?,?,?)", entries)

    def commit(self) -> None:
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()

    def told(self, error: Exception) -> StartupError | None:
        if not isinstance(error, sqlite.Error):
            return None
        damaged = isinstance(error, sqlite.DAMAGED)
        return StartupError(
            f"Cannot copy: {told(self._file, error)}", EXIT_CORRUPT if damaged else EXIT_UNWRITABLE
        )
