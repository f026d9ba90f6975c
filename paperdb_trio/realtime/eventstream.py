"""Server-sent events: the same subscription over a plain HTTP answer (WHATWG HTML, section 9.2).

Law: a thin shell over a subscriber (on a stream of ours), or over pages of the log (through Quart).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Final

import trio

from paperdb_trio.auth.tokens import Grant
from paperdb_trio.errors import ApiError
from paperdb_trio.net.stream import ByteStream
from paperdb_trio.realtime.frames import SSE
from paperdb_trio.realtime.live import Live
from paperdb_trio.services import Services
from paperdb_trio.store.log import FIRST_ROWS
from paperdb_trio.wheel import Wheel

HEARTBEAT: Final = b": still here\n\n"


class EventConnection(Live):
    """A connection that has been answered with an endless body; its peer has nothing more to say."""

    __slots__ = ()

    def __init__(
        self, services: Services, wheel: Wheel, stream: ByteStream, grant: Grant, collection: str
    ) -> None:
        super().__init__(services, wheel, stream, grant, {collection: 0}, SSE)

    async def run(self, position: int) -> None:
        """Send events after `position` until the peer goes, or the connection is closed."""
        self._begin_events()
        try:
            async with trio.open_nursery() as self._nursery:
                self._subscriber.start(position)
                with self._scope:
                    while await self._stream.receive_some(4096):
                        pass  # it has nothing to say but goodbye
                self._subscriber.close()
                # If it is behind the log it comes back with its last id, and is told that this is too old.
                await self._sent()
                self._nursery.cancel_scope.cancel()
        finally:
            self._wheel.remove(self)
            self._subscriber.close()
            self._stream.end()

    def _check_peer(self, now: float) -> float:
        if self._stream.peer_is_gone():
            self._scope.cancel()
        self._subscriber.interject(HEARTBEAT)
        return now + self._settings.ping_interval


async def event_pages(services: Services, grant: Grant, collection: str, position: int) -> AsyncIterator[bytes]:
    """The same for a framework that wants an iterator: pages of the log, and heartbeats between them.

    Ends when the grant does, the log has moved on beyond the position, or the server drains.
    """
    database_id = grant.database.id
    rows = FIRST_ROWS
    with ExitStack() as stack:
        try:
            stack.enter_context(services.limits.listener(database_id))
        except ApiError:  # the last place was taken since the head was sent: the client comes again
            return
        while not services.draining and grant.still_good(services.directory):
            try:
                page = await services.log.page(database_id, position, {collection: 0}, SSE.text, rows)
            except ApiError:  # it could not be read in time: the same
                return
            if page.expired:
                return
            position = page.position
            if page.events:
                yield SSE.join(page.events)
            elif page.reached_end:
                with trio.move_on_after(min(services.settings.ping_interval, 1.0)) as waiting:
                    await services.hub.wait(database_id, collection, position)
                if waiting.cancelled_caught:
                    yield HEARTBEAT
