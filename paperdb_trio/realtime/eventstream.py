"""Server-sent events: the same subscription over a plain HTTP response (WHATWG HTML, section 9.2).

Law: a thin shell over a subscriber (on our own streams), or over pages of the log (through Quart).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack

import trio

from paperdb_trio.auth.tokens import Grant
from paperdb_trio.delivery.encodings import SSE, SSE_CHUNKED, sse_progress
from paperdb_trio.delivery.views import page_text
from paperdb_trio.errors import ApiError
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.net.chunked import LAST_CHUNK, chunk
from paperdb_trio.net.stream import ByteStream
from paperdb_trio.realtime.connection import CLOSE_SECONDS, Live
from paperdb_trio.realtime.protocol import CloseCode
from paperdb_trio.services import Services
from paperdb_trio.store.protocol import FIRST_ROWS, Interest, Topic


class EventConnection(Live):
    """A connection with an endless response; its peer sends nothing more.

    The body is `chunked` (not in HTTP/1.0). Its last chunk marks an end on purpose, after which the client
    should not reconnect as it is; a killed or restarting server sends none.
    """

    __slots__ = ("_chunked",)

    TRANSPORT = "sse"

    def __init__(
        self,
        services: Services,
        wheel: Wheel,
        stream: ByteStream,
        grant: Grant,
        topic: Topic,
        *,
        chunked: bool,
    ) -> None:
        super().__init__(services, wheel, stream, grant, {topic: 0}, SSE_CHUNKED if chunked else SSE)
        self._chunked = chunked

    async def run(self, position: int) -> None:
        """Send events after `position` until the peer leaves, or the connection is closed."""
        self._begin_events(min(self._expires, trio.current_time() + self._settings.ping_interval))
        try:
            async with trio.open_nursery() as self._nursery:
                self._subscriber.start(position)
                with self._scope:
                    while await self._stream.receive_some(4096):
                        pass  # the peer should send nothing
                self._subscriber.close()
                # A client behind the log reconnects with its last id, and then gets a 410.
                if await self._sent() and self._chunked and self._is_final():
                    with trio.move_on_after(CLOSE_SECONDS):
                        await self._stream.send_all(LAST_CHUNK)
                self._nursery.cancel_scope.cancel()
        finally:
            self._wheel.remove(self)
            self._subscriber.close()
            self._stream.end()

    def _is_final(self) -> bool:
        return self._closing is not None and self._closing[0] in (
            CloseCode.TOKEN_EXPIRED,
            CloseCode.ACCESS_LOST,
        )

    def _check_peer(self, now: float) -> float:
        if self._stream.peer_is_gone():
            self._scope.cancel()
        progress = sse_progress(self._subscriber.reached)
        self._subscriber.interject(chunk(progress) if self._chunked else progress)
        return now + self._settings.ping_interval


class StreamCut(Exception):
    """The stream is cut off: its client must not take that for the end, and should reconnect."""


async def event_pages(services: Services, grant: Grant, topic: Topic, position: int) -> AsyncIterator[bytes]:
    """The same for a framework that needs an iterator: pages of the log, with progress between them.

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
