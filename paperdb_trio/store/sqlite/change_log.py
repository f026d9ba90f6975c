"""The change log, read page by page.

Law: a page and the log's bounds are read in one read transaction, so that they agree. SQLite builds the text of
the events.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from paperdb_trio.measures import Histogram
from paperdb_trio.model import Change, encode
from paperdb_trio.store.protocol import (
    FIRST_ROWS,
    PAGE_BYTES,
    EventText,
    Filtered,
    Interest,
    Page,
    Render,
    Topic,
)
from paperdb_trio.store.query import ask
from paperdb_trio.store.refusals import database_gone
from paperdb_trio.store.rowkeys import SEQ_MASK, span
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.file import connect
from paperdb_trio.store.sqlite.gate import ReadGate
from paperdb_trio.store.sqlite.question import condition
from paperdb_trio.store.sqlite.reader import Reader, any_length
from paperdb_trio.store.sqlite.transaction import bounds

SCANNED: Final = 20_000
"""Changes that one read scans for those of a few collections: some 15 ms. Then other readers get a turn."""
THREADS: Final = 3
THREADS_OF_ONE: Final = 2
"""Threads that one database may use."""

# The text of an event; `rowkey&…` is the seq.
_HEAD: Final = """"type":"'||type||'","collection":"'||collection||'","""
_DATA: Final = """"data":'||data||'}'"""
_TXN: Final = """'||iif(txn IS NULL,'','"txn":'||txn||',')||'"""
_PLAIN: Final = "'{" + _HEAD + _DATA
_CURSOR: Final = f"'{{\"seq\":'||(rowkey&{SEQ_MASK})||'," + _HEAD + _TXN + _DATA


_VERSION: Final = f"'{{\"seq\":'||(rowkey&{SEQ_MASK})||',\"type\":\"'||type||'\",\"data\":'||data||'}}'"


_TEXTS: Final = {EventText.PLAIN: _PLAIN, EventText.CURSOR: _CURSOR}


class ChangeLog:
    """Pages of the change log, read on its own pool of threads, so that catching up and queries do not delay
    each other. `close()` it when no page is being read any more."""

    def __init__(
        self, file: Path, *, timeout: float, max_document_bytes: int, gate: ReadGate | None = None
    ) -> None:
        # A page larger than this fails, and is read again with fewer rows.
        self._max_page = max(4 * PAGE_BYTES, max_document_bytes + PAGE_BYTES)
        self._reader = Reader(
            file, threads=THREADS, timeout=timeout, max_result_bytes=self._max_page, gate=gate
        )
        self._file = file
        self._turns: dict[int, trio.CapacityLimiter] = {}

    def close(self) -> None:
        self._reader.close()

    @property
    def seconds(self) -> Mapping[str, Histogram]:
        """How long reads took; see `Reader`."""
        return self._reader.seconds

    async def page(
        self,
        database_id: int,
        after: int,
        interest: Interest,
        text: EventText | Render,
        rows: int = FIRST_ROWS,
    ) -> Page:
        """Read the events of at most `rows` changes after seq `after`, or of fewer if they are much larger than
        `PAGE_BYTES`. The page is empty only if there are none up to the end. Raises a 503 `QUERY_TIMEOUT`.

        SQLite makes the text of the events, unless `text` is a function; an interest with filters needs one.
        """
        turns = self._turns.get(database_id)
        if turns is None:
            turns = self._turns[database_id] = trio.CapacityLimiter(THREADS_OF_ONE)
        while True:
            async with turns:
                page = await self._reader.run(
                    partial(
                        _read_page,
                        database_id=database_id,
                        after=after,
                        interest=interest,
                        text=text,
                        rows=rows,
                    ),
                    "changes",
                )
            if page.events or page.reached_end:
                return page
            after = page.position

    def bounds(self) -> dict[int, tuple[int, int]]:
        """`(head, trimmed)` of every database. Blocks: for start-up only."""
        connection = connect(self._file, read_only=True)
        try:
            return bounds(connection)
        finally:
            connection.close()


def read_history(
    connection: sqlite.Connection, database_id: int, collection: str, id: str, limit: int, max_bytes: int
) -> list[bytes]:
    """See `Store.history`. The log has no index for this: it is read from its end. Raises `TooBigError` for
    more than `max_bytes`."""
    found = connection.execute(
        f"SELECT {_VERSION} FROM changes WHERE rowkey BETWEEN ? AND ? AND collection=? AND "
        "coalesce(id,json_extract(data,'$._id'))=? ORDER BY rowkey DESC LIMIT ?",
        (*span(database_id), collection, id, limit),
    )
    versions: list[bytes] = []
    size = 0
    for (text,) in found:
        versions.append(text.encode())
        size += len(versions[-1])
        if size > max_bytes and len(versions) > 1:
            found.close()
            raise sqlite.TooBigError
    return versions


def _read_page(
    connection: sqlite.Connection,
    database_id: int,
    after: int,
    interest: Interest,
    text: EventText | Render,
    rows: int,
) -> Page:
    bounds = connection.execute("SELECT head, trimmed FROM databases WHERE id=?", (database_id,)).fetchone()
    if bounds is None:
        raise database_gone()
    head, trimmed = bounds
    if not trimmed <= after <= head:
        return Page([], after, True, head, trimmed, expired=True)
    end = head if None in interest else min(head, after + SCANNED)
    base, _ = span(database_id)
    condition, parameters = _interest_sql(base, interest, after)
    limits: list[Any] = [base | after, base | end, *parameters]
    if not isinstance(text, EventText):
        with any_length(connection):
            events, last = _rendered(connection, database_id, condition, limits, rows, text)
        position = end if last is None else last
        return Page(events, position, last is None and end == head, head, trimmed)
    source = f"FROM changes WHERE rowkey>? AND rowkey<=?{condition} ORDER BY rowkey LIMIT ?"
    try:
        found, last, events = connection.execute(
            f"SELECT count(*), max(rowkey), group_concat({_TEXTS[text]},char(10)) FROM (SELECT * {source})",
            (*limits, rows),
        ).fetchone()
        all_found = found < rows
    except sqlite.TooBigError:  # too large for a page: count first how many rows fit
        fitting, last, size = connection.execute(
            "SELECT count(*), max(rowkey), max(total) FROM (SELECT rowkey, size, sum(size) OVER "
            "(ORDER BY rowkey ROWS UNBOUNDED PRECEDING) AS total "
            f"FROM (SELECT rowkey, size {source})) WHERE total<=? OR total=size",
            (*limits, rows, PAGE_BYTES),
        ).fetchone()
        all_found = False
        # The first change may be larger than today's limit for documents, and must still be readable.
        most = connection.limit(sqlite.LENGTH)
        connection.limit(sqlite.LENGTH, max(most, 2 * size + PAGE_BYTES))
        try:
            (events,) = connection.execute(
                f"SELECT group_concat({_TEXTS[text]},char(10)) FROM (SELECT * {source})", (*limits, fitting)
            ).fetchone()
        finally:
            connection.limit(sqlite.LENGTH, most)
    position = end if all_found else last - base
    events = [] if events is None else events.encode().split(b"\n")
    return Page(events, position, all_found and end == head, head, trimmed)


def _rendered(
    connection: sqlite.Connection,
    database_id: int,
    condition: str,
    limits: list[Any],
    rows: int,
    render: Render,
) -> tuple[list[bytes], int | None]:
    """The events of some changes, and the seq of the last one. None: there are no more changes."""
    found = connection.execute(
        "SELECT rowkey, type, collection, data, id, before, txn FROM changes "
        f"WHERE rowkey>? AND rowkey<=?{condition} ORDER BY rowkey LIMIT ?",
        (*limits, rows),
    )
    events: list[bytes] = []
    size = 0
    for count, (rowkey, type, collection, data, id, before, txn) in enumerate(found, 1):
        seq = rowkey & SEQ_MASK
        patch = None if before is None else before.encode()
        own = render(Change(database_id, seq, type, collection, id or "", data.encode(), patch, txn))
        events += own
        size += max(len(data), sum(map(len, own)))  # many queries may show the same document
        if count == rows or size >= PAGE_BYTES:
            found.close()
            return events, seq
    return events, None


PREFILTERED: Final = 16
"""The most filters that SQLite checks, too. A page for more looks at all changes of their collections."""
PREFILTER_PARAMETERS: Final = 10_000
"""The most parameters of these filters together. SQLite has a limit for those of a statement: 32,766."""


def _interest_sql(base: int, interest: Interest, after: int) -> tuple[str, list[Any]]:
    """A condition that holds for every change after seq `after` that the interest may concern, and its
    parameters."""
    terms: list[str] = []
    parameters: list[Any] = []
    narrowed = _prefilters(interest)
    # By their seq, because a term for each collection would be too deep an expression for SQLite.
    names: dict[int, set[str]] = {}
    for topic, since in interest.items():
        if topic is None:
            if since == 0 and len(interest) == 1:
                return "", []
            terms.append("rowkey>?")
            parameters.append(base | since)
        elif topic in narrowed:
            condition, values = narrowed[topic]
            terms.append(f"(collection=? AND rowkey>?{condition})")
            parameters += [_collection(topic), base | since, *values]
        else:
            names.setdefault(max(since, after), set()).add(_collection(topic))
    for since, own in names.items():
        terms.append(f"(collection IN ({','.join('?' * len(own))}) AND rowkey>?)")
        parameters += [*own, base | since]
    return f" AND ({' OR '.join(terms) or '0'})", parameters


def _collection(topic: str | Filtered) -> str:
    return topic if isinstance(topic, str) else topic.collection


def _prefilters(interest: Interest) -> dict[Topic, tuple[str, list[Any]]]:
    """The conditions of the filters, unless they are too many for one statement."""
    filtered = [topic for topic in interest if topic is not None and not isinstance(topic, str)]
    if len(filtered) > PREFILTERED:
        return {}
    found: dict[Topic, tuple[str, list[Any]]] = {topic: _prefilter(topic.filter) for topic in filtered}
    return found if sum(len(values) for _, values in found.values()) <= PREFILTER_PARAMETERS else {}


def _prefilter(filter: dict[str, Any]) -> tuple[str, list[Any]]:
    """A document can only have matched before a change if it does afterwards, or if the change touched a field
    of the filter. The text of `before` contains the names of all fields that it touched."""
    question = ask(encode(filter).decode())
    names = {path.partition(".")[0] for path in question.paths}
    touched = " OR ".join("instr(before,?)" for _ in names) or "0"
    matches, parameters = condition(question)
    narrowed = f" AND ({matches} OR (type='update' AND (before IS NULL OR {touched})))"
    return narrowed, [*parameters, *(encode(name).decode() for name in names)]
