"""Server-sent events for a framework that wants an iterator (Quart); `eventstream` serves our own streams.

Law: reads pages of the log; knows no framework.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack

import trio

from paperdb_trio.auth.tokens import Grant
from paperdb_trio.delivery.encodings import SSE, sse_progress
from paperdb_trio.delivery.views import page_text
from paperdb_trio.errors import ApiError
from paperdb_trio.services import Services
from paperdb_trio.store.protocol import FIRST_ROWS, Interest, Topic


class StreamCut(Exception):
    """The stream is cut off: its client must not take that for the end, and should reconnect."""


async def event_pages(services: Services, grant: Grant, topic: Topic, position: int) -> AsyncIterator[bytes]:
    """The events after `position`: pages of the log, with progress between them.

    Ends when the grant does. Raises `StreamCut` when the log no longer holds the position or cannot be read, or
    the server drains.
    """
    database_id = grant.database.id
    rows = FIRST_ROWS
    interest: Interest = {topic: 0}
    text = page_text(SSE, interest)
    with ExitStack() as stack:
        try:
            stack.enter_context(services.limits.listener(database_id))
        except ApiError as error:  # the last slot was taken since the head was sent
            raise StreamCut from error
        yield sse_progress(position)
        while grant.still_good(services.accounts):
            if services.draining:
                raise StreamCut
            try:
                page = await services.store.page(database_id, position, interest, text, rows)
            except ApiError as error:  # the log could not be read in time
                raise StreamCut from error
            if page.expired:
                raise StreamCut
            position = page.position
            if page.events:
                yield SSE.join(page.events)
            elif page.reached_end:
                with trio.move_on_after(min(services.settings.ping_interval, 1.0)) as waiting:
                    try:
                        await services.hub.wait(database_id, topic, position)
                    except ApiError as error:  # there is no room for another query any more
                        raise StreamCut from error
                if waiting.cancelled_caught:
                    yield sse_progress(position)
