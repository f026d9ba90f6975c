"""Server-sent events: the same subscription over a plain HTTP response (WHATWG HTML, section 9.2).

Law: a thin shell over a subscriber.
"""

from __future__ import annotations

import trio

from paperdb_trio.auth.tokens import Grant
from paperdb_trio.delivery.encodings import SSE, SSE_CHUNKED, sse_progress
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.net.chunked import LAST_CHUNK, chunk
from paperdb_trio.net.stream import ByteStream, Interrupted
from paperdb_trio.realtime.connection import CLOSE_SECONDS, Live
from paperdb_trio.realtime.protocol import CloseCode
from paperdb_trio.services import Services
from paperdb_trio.store.protocol import Topic


class EventConnection(Live):
    """A connection with an endless response; its peer sends nothing more.

    The body is `chunked` (not in HTTP/1.0). Its last chunk marks an end on purpose, after which the client
    should not reconnect as it is; a killed or restarting server sends none. The peer's end ends the stream on
    purpose, too: one that has only ended its own side still reads the response.
    """

    __slots__ = ("_chunked",)

    transport = "sse"

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
        self._begin_events()
        peer_ended = False
        try:
            self._subscriber.start(position)
            self._reading = True
            try:
                while self._closing is None and not peer_ended:
                    peer_ended = not await self._stream.receive_some(4096)  # it should send nothing
            except Interrupted:
                pass
            self._stop_reading()
            self._subscriber.close()
            if self._closing is None:
                self._close_by = trio.current_time() + CLOSE_SECONDS
            # A client behind the log reconnects with its last id, and then gets a 410.
            if await self._sent() and self._chunked and (peer_ended or self._is_final()):
                with trio.move_on_after(CLOSE_SECONDS):
                    await self._stream.send_all(LAST_CHUNK)
        finally:
            await self._end_events()

    def _is_final(self) -> bool:
        return self._closing is not None and self._closing[0] in (
            CloseCode.TOKEN_EXPIRED,
            CloseCode.ACCESS_LOST,
        )

    def _check_peer(self, now: float) -> float:
        if self._stream.peer_is_gone():
            self._interrupt()
        progress = sse_progress(self._subscriber.reached)
        self._subscriber.interject(chunk(progress) if self._chunked else progress)
        return now + self._settings.ping_interval
