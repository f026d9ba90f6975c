"""The bytes of events: a text for each change, framed for each kind of subscriber.

Law: no I/O. A change is encoded once for all subscribers that get the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from paperdb_trio.model import Change
from paperdb_trio.net.chunked import chunk
from paperdb_trio.net.frames import text_frames
from paperdb_trio.store.protocol import EventText


def plain_event(change: Change) -> bytes:
    """The event of plain mode: exactly `type`, `collection`, `data`."""
    return b'{"type":"%b","collection":"%b","data":%b}' % (
        change.type.encode(),
        change.collection.encode(),
        change.data,
    )


def cursor_event(change: Change) -> bytes:
    """The event of cursor mode and of the change log over HTTP: `seq`, `type`, `collection`, `data`; and `txn`
    if its transaction has several changes."""
    return b'{"seq":%d,"type":"%b","collection":"%b",%b"data":%b}' % (
        change.seq,
        change.type.encode(),
        change.collection.encode(),
        b"" if change.txn is None else b'"txn":%d,' % change.txn,
        change.data,
    )


def view_event(change: Change, query: str, type: str, data: bytes) -> bytes:
    """The event that a query makes of a change, in cursor mode. `query`: its id. `cause` says what happened to
    the document; `type`, what happened in the view."""
    return b'{"seq":%d,"type":"%b","collection":"%b",%b"data":%b,"query":"%b","cause":"%b"}' % (
        change.seq,
        type.encode(),
        change.collection.encode(),
        b"" if change.txn is None else b'"txn":%d,' % change.txn,
        data,
        query.encode(),
        change.type.encode(),
    )


def plain_view_event(change: Change, query: str, type: str, data: bytes) -> bytes:
    """The same in plain mode."""
    return plain_event(msgspec.structs.replace(change, type=type, data=data))


def reset_event(change: Change, query: str, reason: bytes) -> bytes:
    """Tells that a query's view cannot be followed over this change: its client must fetch it again."""
    return b'{"seq":%d,"type":"reset","collection":"%b","query":"%b","reason":"%b"}' % (
        change.seq,
        change.collection.encode(),
        query.encode(),
        reason,
    )


def sse_messages(events: list[bytes]) -> bytes:
    """Server-sent events (WHATWG HTML, section 9.2) of cursor events: `id` is the seq.

    The text of a cursor event begins with `{"seq":N,`.
    """
    parts: list[bytes] = []
    for event in events:
        parts += (b"id: ", event[7 : event.index(b",", 7)], b"\ndata: ", event, b"\n\n")
    return b"".join(parts)


def sse_progress(seq: int) -> bytes:
    """A server-sent event whose id says how far everything has been sent. A client that reconnects before its
    first change resumes from there. `EventSource` does not give it to `onmessage`, as its name is another.

    Its data is empty but present: polyfills take no `id` from an event without data.
    """
    return b"event: progress\nid: %d\ndata\n\n" % seq


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """How one kind of subscriber gets its events: the text of each, and how texts are joined into bytes.
    `view`: the text of an event of a query."""

    text: EventText
    event: Callable[[Change], bytes]
    join: Callable[[list[bytes]], bytes]
    view: Callable[[Change, str, str, bytes], bytes] = view_event


PLAIN: Final = Encoding(EventText.PLAIN, plain_event, text_frames, plain_view_event)
CURSOR: Final = Encoding(EventText.CURSOR, cursor_event, text_frames)
SSE: Final = Encoding(EventText.CURSOR, cursor_event, sse_messages)
SSE_CHUNKED: Final = Encoding(EventText.CURSOR, cursor_event, lambda events: chunk(sse_messages(events)))
WAKE: Final = Encoding(EventText.CURSOR, lambda change: b"", lambda events: b"")
"""For tasks that only wait for a change and then read the log."""
