"""The change log, read page by page.

Law: a page is read in one read transaction together with the log's bounds, so that what it says of
"oldest" and "reached the end" is true of the very rows it holds. SQLite builds the events' text.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from paperdb_trio.store.reader import Reader
from paperdb_trio.store.schema import SEQ_MASK, connect, span

PAGE_BYTES: Final = 128 * 1024
"""What a page aims at. It is what one subscriber that does not read keeps in memory."""
FIRST_ROWS: Final = 250
MAX_ROWS: Final = 2000

# The text of an event; `position&…` is the seq.
_REST: Final = """"type":"'||type||'","collection":"'||collection||'","data":'||data||'}'"""
_PLAIN: Final = "'{" + _REST
_CURSOR: Final = f"'{{\"seq\":'||(position&{SEQ_MASK})||'," + _REST


class EventText(Enum):
    """Which text an event has: that of plain mode, or with its seq."""

    PLAIN = _PLAIN
    CURSOR = _CURSOR


Interest = dict[str, int] | None
"""Collections, each with the seq after which its changes are wanted; None is every collection."""


@dataclass(frozen=True, slots=True)
class Page:
    """Events after a position, in seq order.

    `position`: all changes up to this seq are in this page, were before it, or are of no interest.
    `reached_end`: there was no later change when the page was read. `head`, `trimmed`: the log's bounds
    then. `expired`: the position asked for is not one of this log any more (older than what is kept, or
    beyond its head, as after restoring a backup); then there are no events.
    """

    events: list[bytes]
    position: int
    reached_end: bool
    head: int
    trimmed: int
    expired: bool = False


class ChangeLog:
    """Pages of the change log, over a pool of threads of its own: subscribers that catch up do not hold
    up queries, nor the other way round. `close()` it when no reader is left."""

    def __init__(self, file: Path, *, threads: int, timeout: float, max_document_bytes: int) -> None:
        # A page that comes out larger than this fails, and is read again by size.
        self._max_page = max(8 * PAGE_BYTES, max_document_bytes + PAGE_BYTES)
        self._reader = Reader(file, threads=threads, timeout=timeout, max_result_bytes=self._max_page)
        self._file = file

    def close(self) -> None:
        self._reader.close()

    async def page(
        self, database_id: int, after: int, interest: Interest, text: EventText, rows: int = FIRST_ROWS
    ) -> Page:
        """Read at most `rows` events after seq `after`, fewer if they would be much over `PAGE_BYTES`."""
        return await self._reader.run(
            lambda connection: _read_page(connection, database_id, after, interest, text, rows)
        )

    def bounds(self) -> dict[int, tuple[int, int]]:
        """`(head, trimmed)` of every database; for start-up, on the calling thread."""
        connection = connect(self._file, read_only=True)
        try:
            rows = connection.execute("SELECT id, head, trimmed FROM databases")
            return {id: (head, trimmed) for id, head, trimmed in rows}
        finally:
            connection.close()


def _read_page(
    connection: sqlite3.Connection,
    database_id: int,
    after: int,
    interest: Interest,
    text: EventText,
    rows: int,
) -> Page:
    head, trimmed = connection.execute(
        "SELECT head, trimmed FROM databases WHERE id=?", (database_id,)
    ).fetchone()
    if not trimmed <= after <= head:
        return Page([], after, True, head, trimmed, expired=True)
    base, _ = span(database_id)
    condition, parameters = _interest_sql(base, interest)
    limits: list[Any] = [base | after, base | head, *parameters]
    source = f"FROM changes WHERE position>? AND position<=?{condition} ORDER BY position LIMIT ?"
    try:
        found, last, events = connection.execute(
            f"SELECT count(*), max(position), group_concat({text.value},char(10)) FROM (SELECT * {source})",
            (*limits, rows),
        ).fetchone()
        reached_end = found < rows
    except sqlite3.DataError:  # larger than a page may be: count first how many rows fit
        fitting, last = connection.execute(
            "SELECT count(*), max(position) FROM (SELECT position, size, sum(size) OVER "
            "(ORDER BY position ROWS UNBOUNDED PRECEDING) AS total "
            f"FROM (SELECT position, size {source})) WHERE total<=? OR total=size",
            (*limits, rows, PAGE_BYTES),
        ).fetchone()
        reached_end = False
        (events,) = connection.execute(
            f"SELECT group_concat({text.value},char(10)) FROM (SELECT * {source})", (*limits, fitting)
        ).fetchone()
    position = head if reached_end else last - base
    return Page([] if events is None else events.encode().split(b"\n"), position, reached_end, head, trimmed)


def _interest_sql(base: int, interest: Interest) -> tuple[str, list[Any]]:
    if interest is None:
        return "", []
    if not interest:
        return " AND 0", []
    terms = " OR ".join("(collection=? AND position>?)" for _ in interest)
    return f" AND ({terms})", [value for name, since in interest.items() for value in (name, base | since)]
