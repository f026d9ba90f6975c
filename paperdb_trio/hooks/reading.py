"""What one delivery holds: the events of some changes after a webhook's cursor.

Law: reads the log only. The same bounds give the same events, however often and whenever they are read.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from paperdb_trio.delivery.encodings import CURSOR
from paperdb_trio.delivery.views import see, view_text
from paperdb_trio.json_input import decode
from paperdb_trio.match.change import Judged
from paperdb_trio.match.query import Query, query
from paperdb_trio.model import Change
from paperdb_trio.store.protocol import Log, Topic
from paperdb_trio.store.webhooks import Webhook

MAX_EVENTS: Final = 100
"""In a delivery. A page of the log ends at 256 KiB, too, or after one larger change."""


class Batch(NamedTuple):
    """`until`: the seq up to which `events` are complete."""

    events: list[bytes]
    until: int


def topic_of(webhook: Webhook) -> Topic:
    if webhook.collection is None or webhook.filter is None:
        return webhook.collection
    return query(webhook.collection, decode(webhook.filter.encode()))


async def read(store: Log, database_id: int, topic: Topic, after: int, until: int | None) -> Batch:
    """The events after a cursor; if `until` is given, exactly those up to there. Raises `ApiError`."""
    events: list[bytes] = []
    position = after
    while True:

        def render(change: Change) -> list[bytes]:
            return [] if until is not None and change.seq > until else _event(topic, change)

        page = await store.page(database_id, position, {topic: position}, render, MAX_EVENTS)
        if page.expired:
            # Of the rest nothing is known, so what was read before it goes first.
            if events:
                return Batch(events, position)
            gap = b'{"type":"gap","since":%d,"oldest":%d}' % (position, page.trimmed)
            return Batch([gap], page.trimmed)
        events += page.events
        position = page.position
        if until is None or position >= until or page.reached_end:
            return Batch(events, position if until is None else until)


def _event(topic: Topic, change: Change) -> list[bytes]:
    if not isinstance(topic, Query):
        return [CURSOR.event(change)]
    seen = see(topic, Judged(change))
    return [] if seen is None else [view_text(CURSOR, change, seen)]
