"""One WebSocket connection: the client's actions in, its subscriber's events out.

Law: sends events only through its subscriber, replies after them, and nothing after a close frame.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import trio

from paperdb_trio.auth import tokens
from paperdb_trio.auth.tokens import Grant
from paperdb_trio.delivery.encodings import CURSOR, PLAIN
from paperdb_trio.delivery.topics import Asked, name_of
from paperdb_trio.delivery.views import has_queries
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.limits import too_many_subscriptions
from paperdb_trio.loop.turn import TimeSlice
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.match.query import Query
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
from paperdb_trio.net.stream import ByteStream, Interrupted
from paperdb_trio.realtime.connection import CLOSE_SECONDS, Live
from paperdb_trio.realtime.protocol import (
    MAX_BAD_MESSAGES,
    SUBPROTOCOL,
    Action,
    BadMessage,
    CloseCode,
    error_reply,
    parse_action,
    reply,
)
from paperdb_trio.realtime.snapshot import take_snapshot
from paperdb_trio.services import Services
from paperdb_trio.store.protocol import Topic

log = logging.getLogger("paperdb.connection")

RECEIVE_BYTES: Final = 4096


class WebSocket(Live):
    """One upgraded connection. Its task reads the client's frames."""

    __slots__ = (
        "_asked",
        "_bad_messages",
        "_behind",
        "_cursor_mode",
        "_decoder",
        "_limits",
        "_peer_closed",
        "_store",
        "_told",
        "_turns",
    )

    transport = "websocket"

    def __init__(
        self,
        services: Services,
        wheel: Wheel,
        stream: ByteStream,
        grant: Grant,
        first: dict[Topic, Asked],
        cursor_mode: bool,
    ) -> None:
        encoding = CURSOR if cursor_mode else PLAIN
        super().__init__(services, wheel, stream, grant, dict.fromkeys(first, 0), encoding)
        self._store = services.store
        self._limits = services.limits
        self._asked: Mapping[Topic, Asked] = _NO_QUERIES
        if has_queries(first):
            self._asked = {topic: asked for topic, asked in first.items() if asked.is_query}
        self._told = 0
        self._turns = services.turns
        self._decoder = FrameDecoder(services.settings.max_message_bytes)
        self._peer_closed = False
        self._cursor_mode = cursor_mode
        self._bad_messages = 0
        self._behind = False

    @property
    def mode(self) -> str:
        return "cursor" if self._cursor_mode else "plain"

    async def run(self, response: bytes, since: str | None) -> None:
        """Send the response to the handshake; read actions and send events until the connection ends or is
        closed; then close it cleanly."""
        if self._closing is not None:
            await self._stream.send_all(response)
        self._begin_events()
        try:
            if self._closing is None:
                self._begin(response, since)
            self._stream.note_window()
            self._reading = self._closing is None
            try:
                await self._read()
            except Interrupted:
                pass
            self._stop_reading()
            self._subscriber.close()
            if self._closing is not None and await self._sent():
                with trio.move_on_after(CLOSE_SECONDS):
                    await self._say_goodbye(*self._closing)
        finally:
            await self._end_events()

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

    def _begin(self, response: bytes, since: str | None) -> None:
        """Choose the position; nothing may yield from here to `start`. What is sent first goes in one write."""
        database_id = self._grant.database.id
        head = self._hub.committed(database_id)
        position = head
        if self._cursor_mode:
            first = [reply("ready", seq=head)]
            if since is not None and since != "now":
                wanted = int(since)
                missing = self._hub.missing(database_id, wanted)
                if missing is None:
                    position = wanted
                else:
                    first.append(reply("gap", since=wanted, oldest=missing + 1))
            response += b"".join(map(text_frame, first))
        self._subscriber.start(position, response)

    # --- the client's messages -------------------------------------------------------------------

    async def _read(self) -> None:
        """Read frames until the peer closes, or `close` cancels it."""
        while not self._is_closing() and (data := await self._stream.receive_some(RECEIVE_BYTES)):
            if self._is_closing():
                return
            if len(data) == RECEIVE_BYTES:  # probably more follows: one such connection per loop iteration
                await self._turns.next()
            turn = TimeSlice()
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
                if self._is_closing():
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
            if self._is_closing():
                return
            if turn.is_over():
                await turn.pass_on()
        if pongs:
            await self._subscriber.post(pongs)

    async def _take(self, frame: Frame) -> None:
        if frame.opcode == Opcode.TEXT:
            await self._respond(frame.payload)
            if self._bad_messages > MAX_BAD_MESSAGES:
                self.close(CloseCode.TOO_MANY_BAD_MESSAGES, "too many bad messages")
        elif frame.opcode == Opcode.CLOSE:
            self._peer_closed = True
            self.close(frame.close_code(), "")

    async def _respond(self, message: bytes) -> None:
        """Do what a message asks for, and reply."""
        try:
            action = parse_action(message)
        except BadMessage as bad:
            self._bad_messages += 1
            await self._post(error_reply(bad.error, bad.ref))
            return
        try:
            await _ACTIONS[action.name](self, action)
        except ApiError as error:
            await self._post(error_reply(error, action.ref))

    async def _post(self, text: bytes) -> None:
        await self._subscriber.post(text_frame(text))

    def _put(self, text: bytes) -> None:
        self._subscriber.put(text_frame(text))

    # --- what it follows -------------------------------------------------------------------------

    @property
    def _database_id(self) -> int:
        return self._grant.database.id

    def _asked_for(self, topic: Topic) -> Asked:
        """What the client asked for when it got this topic."""
        return self._asked.get(topic) or Asked(name_of(topic))

    async def _subscribe(self, action: Action) -> None:
        given = action.members
        name = check_collection(given["collection"])
        asked = Asked(name, given.get("filter"), _select(given.get("select")), given.get("snapshot", False))
        if asked.snapshot and "since" in given:
            raise bad_request("'snapshot' and 'since' exclude each other", "INVALID_MESSAGE")
        if not self._cursor_mode and (asked.snapshot or "since" in given):
            raise bad_request(
                f"'snapshot' and 'since' need cursor mode: the subprotocol {SUBPROTOCOL}, or ?since=",
                "INVALID_MESSAGE",
            )
        topic = asked.within(self._grant)
        with self._hub.following(self._database_id, [topic]):  # it is refused before anything changes
            if asked.snapshot:
                assert isinstance(topic, Query)
                await self._send_snapshot(
                    topic,
                    lambda seq: self._subscribed(action.ref, topic, seq),
                    lambda: self._make_way(asked, topic),
                )
            elif self._covers(topic) and "since" not in given:
                await self._subscriber.room()
                followed = topic if topic in self._subscriber.interest else None
                self._put(self._subscribed(action.ref, topic, self._subscriber.comes_after(followed)))
            else:
                await self._follow(action, asked, topic)

    def _covers(self, topic: Topic) -> bool:
        """Whether its events come already."""
        interest = self._subscriber.interest
        return topic in interest or (isinstance(topic, str) and None in interest)

    def _make_way(self, asked: Asked, topic: Topic) -> None:
        """End what the topic replaces. Raises a 400, having done nothing."""
        interest = self._subscriber.interest
        if topic in interest:  # it begins anew
            replaced = [topic]
        elif self._cursor_mode:
            replaced = []
        else:  # a collection has one filter, because events do not tell theirs
            if None in interest:
                raise _subscribed_to_all()
            replaced = [other for other in interest if name_of(other) == asked.collection]
        if len(interest) - len(replaced) >= self._settings.max_subscriptions:
            raise too_many_subscriptions(self._settings.max_subscriptions)
        for other in replaced:
            self._unwant(other)
        if asked.is_query:
            self._asked = {**self._asked, topic: asked}

    def _unwant(self, topic: Topic) -> None:
        self._subscriber.unwant(topic)
        self._asked = {other: asked for other, asked in self._asked.items() if other != topic}

    async def _follow(self, action: Action, asked: Asked, topic: Topic) -> None:
        """Follow a topic from now on, or from where the client was. Raises what `_make_way` does."""
        if not self._store.is_current(self._database_id):
            with self._interruptible() as scope:
                await self._store.current(self._database_id)
            if scope.cancelled_caught:
                return
        await self._subscriber.room()
        self._make_way(asked, topic)
        head = self._hub.committed(self._database_id)
        since = action.members.get("since")
        # From now on: a later catch-up does not read older changes from the log.
        seq = max(self._subscriber.reached, head) if since is None else since
        gap = since is not None and self._hub.missing(self._database_id, since) is not None
        if gap:
            seq = head
        self._subscriber.want(topic, seq)
        self._put(self._subscribed(action.ref, topic, seq))
        if gap:
            self._put(_reset(topic, "gap", seq=seq))
        log.debug("subscription of %s to %s", self._stream.peer, asked.collection)

    def _subscribed(self, ref: Any, topic: Topic, seq: int) -> bytes:
        return reply("subscribed", ref, **_named(topic), **self._seq(seq))

    async def _send_snapshot(
        self, topic: Query, first: Callable[[int], bytes], make_way: Callable[[], None]
    ) -> None:
        """Send what `first` makes of the seq, and the documents at this seq; then follow. Raises what
        `take_snapshot` and `make_way` do, having sent nothing."""
        directory = Path(self._settings.data)
        with self._interruptible():
            taken = await take_snapshot(self._store, self._database_id, topic, directory)
            with taken as snapshot, self._limits.pending(snapshot.size):
                make_way()
                await self._post(first(snapshot.seq))
                for frame in snapshot:
                    await self._subscriber.post(frame)
            self._subscriber.want(topic, snapshot.seq)
            log.debug("subscription of %s to %s, with a snapshot", self._stream.peer, topic.collection)

    async def _unsubscribe(self, action: Action) -> None:
        given = action.members
        if len(given) != 1:
            raise bad_request("'unsubscribe' needs either 'collection' or 'query'", "INVALID_MESSAGE")
        interest = self._subscriber.interest
        named: list[Topic]
        if "query" in given:
            named = [topic for topic in interest if isinstance(topic, Query) and topic.id == given["query"]]
        else:
            name = check_collection(given["collection"])
            if None in interest:
                raise _subscribed_to_all()
            # With a cursor, queries end by their ids.
            kept = self._asked if self._cursor_mode else ()
            named = [topic for topic in interest if name_of(topic) == name and topic not in kept]
        if not named:
            what = given.get("collection") or given["query"][:40]
            raise bad_request(f"This connection is not subscribed to '{what}'", "NOT_SUBSCRIBED")
        for topic in named:
            self._unwant(topic)
        await self._post(reply("unsubscribed", action.ref, **given))

    async def _auth(self, action: Action) -> None:
        grant = tokens.verify(self._accounts, action.members["token"])
        if grant.database.id != self._database_id:
            raise ApiError(403, "OTHER_DATABASE", "The token is for another database")
        changed: list[tuple[Topic, Asked, Topic]] = []
        for topic in self._subscriber.interest:
            asked = self._asked_for(topic)
            try:
                new = asked.within(grant)
            except ApiError as error:
                if error.code != "NOT_IN_TOKEN":
                    raise
                raise ApiError(
                    403, "NOT_IN_TOKEN", "The token does not cover what this connection is subscribed to"
                ) from None
            if new != topic:
                changed.append((topic, asked, new))
        self._take_grant(grant)
        self._wheel.add(self)
        for topic, _, _ in changed:  # nothing more of what the new token may not show
            self._unwant(topic)
        await self._post(reply("authenticated", action.ref, expiresIn=max(0, int(grant.expires - time.time()))))
        for old, asked, new in changed:
            await self._change_rule(old, asked, new)

    async def _change_rule(self, old: Topic, asked: Asked, new: Topic) -> None:
        """Follow what another token shows instead: first tell the client, which has to forget what it knows."""
        await self._subscriber.room()
        becomes = {"becomes": new.id} if isinstance(new, Query) else {}
        seq = max(self._subscriber.reached, self._hub.committed(self._database_id))
        try:
            with self._hub.following(self._database_id, [new]):  # it is refused before anything is sent
                if asked.snapshot and isinstance(new, Query):  # even if it is followed: it begins anew
                    await self._send_snapshot(
                        new,
                        lambda seq: _reset(old, "rule", seq=seq, **becomes),
                        lambda: self._make_way(asked, new),
                    )
                    return
                if new not in self._subscriber.interest:
                    self._make_way(asked, new)
                    self._subscriber.want(new, seq)
        except ApiError:  # the client learns why when it asks again
            becomes = {}
        self._put(_reset(old, "rule", **self._seq(seq), **becomes))

    async def _ping(self, action: Action) -> None:
        await self._post(reply("pong", action.ref, **self._seq(self._subscriber.reached)))

    def _seq(self, seq: int) -> dict[str, int]:
        """In cursor mode replies have a `seq`, too, which keeps the cursor of a quiet collection fresh."""
        return {"seq": seq} if self._cursor_mode else {}

    def _tell_progress(self) -> None:
        """While nothing matches, keep the cursor of a client with queries young."""
        reached = self._subscriber.reached
        if not self._cursor_mode or reached <= self._told or not has_queries(self._subscriber.interest):
            return
        if self._subscriber.interject(text_frame(reply("progress", seq=reached))):
            self._told = reached

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
            self._tell_progress()
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


_NO_QUERIES: Final[Mapping[Topic, Asked]] = {}


def _subscribed_to_all() -> ApiError:
    return bad_request(
        "This connection is subscribed to every collection; connect with ?collections=… to choose",
        "SUBSCRIBED_TO_ALL",
    )


def _reset(topic: Topic, reason: str, **fields: Any) -> bytes:
    """Tells that the client must fetch again what it follows."""
    return reply("reset", **_named(topic), reason=reason, **fields)


def _named(topic: Topic) -> dict[str, Any]:
    """How messages name it."""
    about = {"query": topic.id} if isinstance(topic, Query) else {}
    return {"collection": name_of(topic), **about}


def _select(paths: list[Any] | None) -> tuple[str, ...] | None:
    return None if paths is None else tuple(paths)


_ACTIONS: Final[dict[str, Callable[[WebSocket, Action], Awaitable[None]]]] = {
    "subscribe": WebSocket._subscribe,
    "unsubscribe": WebSocket._unsubscribe,
    "auth": WebSocket._auth,
    "ping": WebSocket._ping,
}
