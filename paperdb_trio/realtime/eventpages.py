"""Server-sent events for a framework that wants an iterator (Quart); `eventstream` serves our own streams.

Law: reads pages of the log; knows no framework.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack

from paperdb_trio.delivery.encodings import SSE, sse_progress
from paperdb_trio.delivery.readers import Reader
from paperdb_trio.delivery.views import page_text
from paperdb_trio.errors import ApiError
from paperdb_trio.net.messages import EventStream
from paperdb_trio.services import Services
from paperdb_trio.store.protocol import FIRST_ROWS


class StreamCut(Exception):
    """The stream is cut off: its client must not take that for the end, and should reconnect."""


async def event_pages(services: Services, response: EventStream, address: str) -> AsyncIterator[bytes]:
    """The events of a response: pages of the log, with progress between them. `address`: the client's.

    Ends when the grant does. Raises `StreamCut` when the log no longer holds the position or cannot be read,
    when the server drains, and when an administrator closes it.
    """
    grant, topic = response.grant, response.topic
    reader = Reader("sse", address, grant, services.hub, topic, response.position)
    text = page_text(SSE, reader.interest)

    def given(data: bytes) -> bytes:
        reader.unsent = len(data)
        return data

    with ExitStack() as stack:
        try:
            stack.enter_context(services.limits.listener(reader.database_id))
        except ApiError as error:  # the last slot was taken since the head was sent
            raise StreamCut from error
        stack.enter_context(services.readers.reading(reader))
        yield given(sse_progress(reader.position))
        while grant.still_good(services.accounts):
            reader.unsent = 0
            if services.draining or reader.closed:
                raise StreamCut
            try:
                page = await services.store.page(
                    reader.database_id, reader.position, reader.interest, text, FIRST_ROWS
                )
            except ApiError as error:  # the log could not be read in time
                raise StreamCut from error
            if page.expired:
                raise StreamCut
            reader.position, reader.behind = page.position, not page.reached_end
            if page.events:
                yield given(SSE.join(page.events))
            elif page.reached_end:
                try:
                    found = await reader.wait(min(services.settings.ping_interval, 1.0))
                except ApiError as error:  # there is no room for another query any more
                    raise StreamCut from error
                if not found:
                    yield given(sse_progress(reader.position))
