"""The change log, read page by page.

Law: a page and the log's bounds are read in one snapshot, so that they agree. PostgreSQL builds the text of the
events.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import trio

from paperdb_trio.model import Change, encode
from paperdb_trio.store.postgres.connection import Connection, Pool
from paperdb_trio.store.postgres.question import Columns, Sql, condition
from paperdb_trio.store.postgres.wire import Row, Statement
from paperdb_trio.store.protocol import FIRST_ROWS, PAGE_BYTES, EventText, Interest, Page, Render, Topic
from paperdb_trio.store.query import ask
from paperdb_trio.store.refusals import database_gone

SCANNED: Final = 20_000
"""Changes that one read scans for those of a few collections. Then other readers get a turn."""
PER_DATABASE: Final = 2
"""Connections that one database may use."""

BEGIN: Final[Statement] = ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", ())
END: Final[Statement] = ("COMMIT", ())

_HEAD: Final = """"type":"'||type||'","collection":"'||collection||'","""
_DATA: Final = """"data":'||data||'}'"""
_TXN: Final = """'||CASE WHEN txn IS NULL THEN '' ELSE '"txn":'||txn||',' END||'"""
_TEXTS: Final = {
    EventText.PLAIN: "'{" + _HEAD + _DATA,
    EventText.CURSOR: "'{\"seq\":'||seq||'," + _HEAD + _TXN + _DATA,
}
_VERSION: Final = "'{\"seq\":'||seq||',\"type\":\"'||type||'\",\"data\":'||data||'}'"
_CHANGE: Final = "database_id, seq, type, collection, id, data, before, txn"


_BREAKS: Final = "SELECT since, until FROM breaks WHERE database_id=$1 AND until>$2 ORDER BY until LIMIT 2"


class Following(NamedTuple):
    """`broken`: there is a break, from one seq to another, and no change before it."""

    changes: list[Change]
    broken: tuple[int, int] | None


class ChangeLog:
    def __init__(self, pool: Pool, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout
        self._turns: dict[int, trio.CapacityLimiter] = {}

    async def page(
        self,
        database_id: int,
        after: int,
        interest: Interest,
        text: EventText | Render,
        rows: int = FIRST_ROWS,
    ) -> Page:
        """See `Log.page`."""
        turns = self._turns.get(database_id)
        if turns is None:
            turns = self._turns[database_id] = trio.CapacityLimiter(PER_DATABASE)
        while True:
            async with turns, self._pool.lease("changes", self._timeout) as connection:
                page = await _read_page(connection, database_id, after, interest, text, rows)
            if page.events or page.reached_end:
                return page
            after = page.position

    async def changes(self, database_id: int, after: int, rows: int = 1000) -> Following:
        """What follows a seq: changes, `rows` of them and the rest of their last transaction, or a break."""
        async with self._pool.lease("changes", self._timeout) as connection:
            # In this order: a break is there before the changes behind it.
            found, breaks = await connection.queries(
                [
                    (
                        f"SELECT {_CHANGE} FROM changes WHERE database_id=$1 AND seq>$2 ORDER BY seq LIMIT $3",
                        (database_id, after, rows),
                    ),
                    (_BREAKS, (database_id, after)),
                ]
            )
            changes = [_change(row) for row in found]
            if breaks:
                since, until = breaks[0]
                changes = [change for change in changes if change.seq <= since]
                return Following(changes, None if changes else (since, until))
            if len(changes) == rows and (txn := changes[-1].txn) is not None:
                found = await connection.query(
                    f"SELECT {_CHANGE} FROM changes WHERE database_id=$1 AND seq>$2 AND seq<coalesce((SELECT "
                    "min(seq) FROM changes WHERE database_id=$1 AND seq>$2 AND txn IS DISTINCT FROM "
                    "$3::bigint), 9223372036854775807) ORDER BY seq",
                    database_id,
                    changes[-1].seq,
                    txn,
                )
                changes += [_change(row) for row in found]
            return Following(changes, None)

    async def history(
        self, connection: Connection, database_id: int, collection: str, id: str, limit: int, max_bytes: int
    ) -> list[bytes] | None:
        """See `Store.history`. The log has no index for this: it is read from its end. None if they are larger
        than `max_bytes` together; a single one may be."""
        rows = await connection.query(
            f"SELECT CASE WHEN total<=$5 OR n=1 THEN {_VERSION} END FROM (SELECT *, count(*) OVER () AS n, "
            "sum(octet_length(data)) OVER () AS total FROM (SELECT seq, type, data FROM changes "
            "WHERE database_id=$1 AND collection=$2 AND id=$3 ORDER BY seq DESC LIMIT $4) c) c "
            "ORDER BY seq DESC",
            database_id,
            collection,
            id,
            limit,
            max_bytes,
        )
        return None if rows and rows[0][0] is None else [version for (version,) in rows]


def _change(row: Row) -> Change:
    database_id, seq, type, collection, id, data, before, txn = row
    return Change(
        database_id, seq, type.decode(), collection.decode(), id.decode() if id else "", data, before, txn
    )


async def _read_page(
    connection: Connection,
    database_id: int,
    after: int,
    interest: Interest,
    text: EventText | Render,
    rows: int,
) -> Page:
    _, heads, breaks = await connection.queries(
        [
            BEGIN,
            ("SELECT head, trimmed FROM heads WHERE database_id=$1", (database_id,)),
            (_BREAKS, (database_id, after)),
        ]
    )
    try:
        if not heads:
            raise database_gone()
        ((head, trimmed),) = heads
        if not trimmed <= after <= head:
            return Page([], after, True, head, trimmed, expired=True)
        last_end = head
        for since, until in breaks:
            if since < after:
                return Page([], after, True, head, until, expired=True)
            if since > after:
                last_end = since
                break
            after = until
        end = last_end if None in interest else min(last_end, after + SCANNED)
        wanted = _interest(interest, after)
        # The sizes decide first how many fit a page; then only those are read.
        last, found, events = await _events(connection, database_id, after, end, wanted, text, rows)
        all_found = found < rows and last is None
        position = end if all_found else last
        assert position is not None
        return Page(events, position, all_found and end == head, head, trimmed)
    finally:
        if not connection.busy:
            await connection.queries([END])


async def _events(
    connection: Connection,
    database_id: int,
    after: int,
    end: int,
    wanted: Sql,
    text: EventText | Render,
    rows: int,
) -> tuple[int | None, int, list[bytes]]:
    """The seq of the last change if there may be more, the number of changes that were read, and the events."""
    columns = _CHANGE if not isinstance(text, EventText) else f"seq, {_TEXTS[text]}"
    found = await connection.query(
        f"SELECT total, size, {columns} FROM (SELECT *, sum(size) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING)"
        "::bigint AS total FROM (SELECT * FROM changes WHERE database_id=$1 AND seq>$2 AND seq<=$3 "
        f"AND {wanted.numbered(5)} ORDER BY seq LIMIT $4) c) c WHERE total-size<{PAGE_BYTES} ORDER BY seq",
        database_id,
        after,
        end,
        rows,
        *wanted.parameters,
    )
    if isinstance(text, EventText):
        last = None if len(found) < rows and (not found or found[-1][0] < PAGE_BYTES) else found[-1][2]
        return last, len(found), [row[3] for row in found]
    events: list[bytes] = []
    size = 0
    for count, row in enumerate(found, 1):
        own = text(_change(row[2:]))
        events += own
        size += max(len(row[7]), sum(map(len, own)))  # many queries may show the same document
        if count == rows or size >= PAGE_BYTES:
            return row[3], count, events
    if found and found[-1][0] >= PAGE_BYTES:
        return found[-1][3], len(found), events
    return None, len(found), events


PREFILTERED: Final = 16
"""The most filters that PostgreSQL checks, too. A page for more looks at all changes of their collections."""
_COLUMNS: Final = Columns("(data::jsonb)", "data")
_PLACE: Final = "\0"


def _interest(interest: Interest, after: int) -> Sql:
    """A condition that holds for every change after seq `after` that the interest may concern."""
    terms: list[str] = []
    parameters: list[Any] = []
    filtered = [topic for topic in interest if topic is not None and not isinstance(topic, str)]
    narrowed = {topic: _prefilter(topic.filter) for topic in filtered if len(filtered) <= PREFILTERED}
    names: dict[int, set[str]] = {}
    for topic, since in interest.items():
        if topic is None:
            if since == 0 and len(interest) == 1:
                return Sql("TRUE", [])
            terms.append(f"seq>{_PLACE}")
            parameters.append(since)
        elif topic in narrowed:
            matching = narrowed[topic]
            terms.append(f"(collection={_PLACE} AND seq>{_PLACE} AND {matching.text})")
            parameters += [_collection(topic), since, *matching.parameters]
        else:
            names.setdefault(max(since, after), set()).add(_collection(topic))
    for since, own in names.items():
        terms.append(f"(collection IN ({','.join([_PLACE] * len(own))}) AND seq>{_PLACE})")
        parameters += [*own, since]
    return Sql(f"({' OR '.join(terms) or 'FALSE'})", parameters)


def _collection(topic: Topic) -> str:
    assert topic is not None
    return topic if isinstance(topic, str) else topic.collection


def _prefilter(filter: dict[str, Any]) -> Sql:
    """As in SQLite: a document can only have matched before a change if it does afterwards, or if the change
    touched a field of the filter."""
    question = ask(encode(filter).decode())
    matching = condition(question, _COLUMNS)
    names = {path.partition(".")[0] for path in question.paths}
    touched = " OR ".join(f"strpos(before,{_PLACE})>0" for _ in names) or "FALSE"
    text = f"({matching.text} OR (type='update' AND (before IS NULL OR {touched})))"
    return Sql(text, [*matching.parameters, *(encode(name).decode() for name in names)])
