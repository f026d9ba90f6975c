"""What queries make of changes: the events of those whose view a change touches.

Law: no I/O. A query that fails costs its own subscribers a `reset`, never another query or the publisher.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from paperdb_trio.delivery.encodings import Encoding, reset_event
from paperdb_trio.match.change import BeforeUnknown, Judged, event_of
from paperdb_trio.match.query import Query
from paperdb_trio.model import Change
from paperdb_trio.store.protocol import EventText, Interest, Render, Topic

log = logging.getLogger("paperdb.delivery")

RESET: Final = "reset"

ENOUGH_BYTES: Final = 4 * 1024 * 1024
"""Bytes of views of one change for one subscriber. A large document that many of its queries show would
otherwise fill the memory: the queries beyond it get a reset."""

Seen = tuple[Query, str, bytes]
"""A query, and what a change is to it: the type of the event, and its data. For `RESET`, the reason."""


def see(query: Query, judged: Judged) -> Seen | None:
    """None if the change does not touch the query's view."""
    try:
        event = event_of(query, judged)
    except BeforeUnknown:
        return query, RESET, b"gap"
    except Exception:
        log.exception("a live query failed: its subscribers get a reset: %r", query)
        return query, RESET, b"error"
    return None if event is None else (query, *event)


def view_text(encoding: Encoding, change: Change, seen: Seen) -> bytes:
    query, type, data = seen
    if type == RESET:
        return reset_event(change, query.id, data)
    return encoding.view(change, query.id, type, data)


def page_text(encoding: Encoding, interest: Interest) -> EventText | Render:
    """How a page of the log makes the events of an interest. SQLite does it, unless there are queries."""
    if has_queries(interest):
        return _renderer(encoding, interest)
    return encoding.text


def _renderer(encoding: Encoding, interest: Interest) -> Render:
    by_collection: dict[str | None, list[tuple[Topic, int]]] = {}
    for topic, since in interest.items():
        name = topic if topic is None or isinstance(topic, str) else topic.collection
        by_collection.setdefault(name, []).append((topic, since))
    everything = by_collection.get(None, [])

    def render(change: Change) -> list[bytes]:
        events: list[bytes] = []
        judged = Judged(change)
        whole = False
        size = 0
        for topic, since in (*everything, *by_collection.get(change.collection, ())):
            if change.seq <= since:
                continue
            if isinstance(topic, Query):
                if (seen := see(topic, judged)) is not None:
                    seen = seen if size < ENOUGH_BYTES else (topic, RESET, b"size")
                    events.append(view_text(encoding, change, seen))
                    size += len(events[-1])
            elif not whole:
                whole = True
                events.insert(0, encoding.event(change))
        return events

    return render


def has_queries(topics: Iterable[Topic]) -> bool:
    for topic in topics:  # noqa: SIM110 - for one topic, `any` takes three times as long
        if isinstance(topic, Query):
            return True
    return False
