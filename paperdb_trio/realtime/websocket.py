"""One WebSocket connection: the client's actions in, its subscriber's events out.

Law: sends events only through its subscriber, replies after them, and nothing after a close frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio

from paperdb_trio.auth import tokens
from paperdb_trio.auth.tokens import Grant
from paperdb_trio.delivery.encodings import CURSOR, PLAIN
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.limits import too_many_subscriptions
from paperdb_trio.loop.turn import TimeSlice
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.model import check_collection
from paperdb_trio.net.frames import (
    Frame,
    FrameDecoder,
    Opcode,
    ProtocolError,
    close_frame,
    ping_frame,
    pong_frame,
    text_frame,
)
from paperdb_trio.net.stream import ByteStream
from paperdb_trio.realtime.connection import CLOSE_SECONDS, Live
from paperdb_trio.realtime.protocol import (
    MAX_BAD_MESSAGES,
    Action,
    BadMessage,
    CloseCode,
    error_reply,
    parse_action,
    reply,
)
from paperdb_trio.services import Services
from paperdb_trio.store.change_log import Interest

RECEIVE_BYTES: Final = 4096


class WebSocket(Live):
    """One upgraded connection. Its task reads the client's frames."""

    __slots__ = (
        "_bad_messages",
        "_behind",
        "_cursor_mode",
        "_decoder",
        "_interest",
        "_peer_closed",
        "_turns",
    )

    def __init__(
        self,
        services: Services,
        wheel: Wheel,
        stream: ByteStream,
        grant: Grant,
        interest: Interest,
        cursor_mode: bool,
    ) -> None:
        super().__init__(services, wheel, stream, grant, interest, CURSOR if cursor_mode else PLAIN)
        self._turns = services.turns
        self._decoder = FrameDecoder(services.settings.max_message_bytes)
        self._peer_closed = False
        self._interest = interest
        self._cursor_mode = cursor_mode
        self._bad_messages = 0
        self._behind = False

    async def run(self, since: str | None) -> None:
        """Read actions and send events until the connection ends or is closed; then close it cleanly."""
        self._begin_events()
        try:
            async with trio.open_nursery() as self._nursery:
                if self._closing is None:
                    self._begin(since)
                self._stream.note_window()
                with self._scope:
                    await self._read()
                self._subscriber.close()
                if self._closing is not None and await self._sent():
                    with trio.move_on_after(CLOSE_SECONDS):
                        await self._say_goodbye(*self._closing)
                self._nursery.cancel_scope.cancel()
        finally:
            self._wheel.remove(self)
            self._subscriber.close()
            self._stream.end()

    async def _say_goodbye(self, code: int, reason: str) -> None:
        """Send a close frame. Unless the peer sent one first, wait for the peer's."""
        await self._stream.send_all(close_frame(code, reason))
        while not self._peer_closed:
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                return
            try:
                self._peer_closed = any(frame.opcode == Opcode.CLOSE for frame in self._decoder.feed(data))
            except ProtocolError:
                return

    def _begin(self, since: str | None) -> None:
        """Choose the position; nothing may yield from here to `start`."""
        database_id = self._grant.database.id
        head = self._hub.committed(database_id)
        position = head
        if self._cursor_mode:
            first = [reply("ready", seq=head)]
            if since is not None and since != "now":
                wanted, trimmed = int(since), self._hub.trimmed(database_id)
                if trimmed <= wanted <= head:
                    position = wanted
                else:
                    first.append(reply("gap", since=wanted, oldest=trimmed + 1))
            frames = b"".join(map(text_frame, first))
            if self._stream.push(frames) < 0:  # not even the response to the handshake has been read
                self._stream.keep(frames)
        self._subscriber.start(position)
        if self._stream.needs_flush and self._nursery is not None:
            self._nursery.start_soon(self._stream.send_all, b"")

    # --- the client's messages -------------------------------------------------------------------

    async def _read(self) -> None:
        """Read frames until the peer closes, or `close` cancels it."""
        turn = TimeSlice()
        while data := await self._stream.receive_some(RECEIVE_BYTES):
            if len(data) == RECEIVE_BYTES:  # probably more follows: one such connection per loop iteration
                await self._turns.next()
            turn.begin()
            while True:
                try:
                    frames = self._decoder.feed(data)
                except ProtocolError as error:
                    self.close(error.code, error.reason)
                    return
                if not frames:
                    break
                data = b""
                await self._take_all(frames, turn)
                if self._closing is not None:
                    return

    async def _take_all(self, frames: list[Frame], turn: TimeSlice) -> None:
        """Process them in order, up to one that closes. Pongs for consecutive pings are written together."""
        pongs = b""
        for frame in frames:
            if frame.opcode == Opcode.PING:
                pongs += pong_frame(frame.payload)
                continue
            if pongs:
                await self._subscriber.post(pongs)
                pongs = b""
            await self._take(frame)
            if self._closing is not None:
                return
            if turn.is_over():
                await turn.pass_on()
        if pongs:
            await self._subscriber.post(pongs)

    async def _take(self, frame: Frame) -> None:
        if frame.opcode == Opcode.TEXT:
            await self._subscriber.post(text_frame(self._reply(frame.payload)))
            if self._bad_messages > MAX_BAD_MESSAGES:
                self.close(CloseCode.TOO_MANY_BAD_MESSAGES, "too many bad messages")
        elif frame.opcode == Opcode.CLOSE:
            self._peer_closed = True
            self.close(frame.close_code(), "")

    def _reply(self, message: bytes) -> bytes:
        try:
            action = parse_action(message)
        except BadMessage as bad:
            self._bad_messages += 1
            return error_reply(bad.error, bad.ref)
        try:
            return _REPLIES[action.name](self, action)
        except ApiError as error:
            return error_reply(error, action.ref)

    def _subscribe(self, action: Action) -> bytes:
        name = check_collection(action.argument)
        tokens.require_unfiltered(self._grant, [name])
        seq = self._subscriber.reached
        if self._interest is not None and name not in self._interest:
            if len(self._interest) >= self._settings.max_subscriptions:
                raise too_many_subscriptions(self._settings.max_subscriptions)
            # From now on: a later catch-up does not read older changes from the log.
            seq = max(seq, self._hub.committed(self._grant.database.id))
            self._interest = {**self._interest, name: seq}
            self._subscriber.set_interest(self._interest)
        return reply("subscribed", action.ref, collection=name, **self._seq(seq))

    def _unsubscribe(self, action: Action) -> bytes:
        name = check_collection(action.argument)
        if self._interest is None:
            raise bad_request(
                "This connection is subscribed to every collection; connect with ?collections=… to choose",
                "SUBSCRIBED_TO_ALL",
            )
        if name not in self._interest:
            raise bad_request(f"This connection is not subscribed to '{name}'", "NOT_SUBSCRIBED")
        self._interest = {other: since for other, since in self._interest.items() if other != name}
        self._subscriber.set_interest(self._interest)
        return reply("unsubscribed", action.ref, collection=name)

    def _auth(self, action: Action) -> bytes:
        grant = tokens.verify(self._accounts, action.argument)
        if grant.database.id != self._grant.database.id:
            raise ApiError(403, "OTHER_DATABASE", "The token is for another database")
        if grant.collections is not None and not (
            self._interest is not None and grant.collections.issuperset(self._interest)
        ):
            raise ApiError(
                403, "NOT_IN_TOKEN", "The token does not cover what this connection is subscribed to"
            )
        tokens.require_unfiltered(grant, self._interest)
        self._take_grant(grant)
        self._wheel.add(self)
        return reply("authenticated", action.ref, expiresIn=max(0, int(grant.expires - time.time())))

    def _ping(self, action: Action) -> bytes:
        return reply("pong", action.ref, **self._seq(self._subscriber.reached))

    def _seq(self, seq: int) -> dict[str, int]:
        """In cursor mode replies have a `seq`, too, which keeps the cursor of a quiet collection fresh."""
        return {"seq": seq} if self._cursor_mode else {}

    # --- pings -----------------------------------------------------------------------------------

    def _check_peer(self, now: float) -> float:
        heard = self._stream.last_received
        ping_at = heard + self._settings.ping_interval
        if now < ping_at:
            return ping_at
        if self._pinged < heard:
            if not self._subscriber.interject(ping_frame()):
                # Unread events block the ping: the peer is slow, or gone.
                if self._stream.peer_is_gone():
                    self.close(CloseCode.PING_TIMEOUT, "the peer's machine does not respond")
                return now + 1.0
            self._pinged = now
        if self._stream.peer_is_gone():
            self.close(CloseCode.PING_TIMEOUT, "the peer's machine does not respond")
            return now + 1.0
        # While it has not read up to the ping it is only slow; its time begins once it has read the rest.
        was_behind, self._behind = self._behind, self._stream.reader_is_behind()
        if self._behind or was_behind:
            self._pinged = now
        elif now >= self._pinged + self._settings.ping_timeout:
            self.close(CloseCode.PING_TIMEOUT, "no response to a ping")
        return min(self._pinged + self._settings.ping_timeout, now + 1.0)


_REPLIES: Final[dict[str, Callable[[WebSocket, Action], bytes]]] = {
    "subscribe": WebSocket._subscribe,
    "unsubscribe": WebSocket._unsubscribe,
    "auth": WebSocket._auth,
    "ping": WebSocket._ping,
}
