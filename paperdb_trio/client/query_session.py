"""One connection of a link that follows one live query.

Law: as in `session`. The query has the connection to itself, so that its position is the link's cursor, and a
slow consumer holds up no other query. The server is asked by `_reconcile` only, and what comes before its reply
is of the past, and dropped.

A channel with a snapshot never has a gap: where the server cannot go on, it is asked for another snapshot.
"""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from .buffer import Received
from .channel import Channel
from .errors import PaperDBError
from .session import ASK_SECONDS, EVENTS, READY_SECONDS, Session, received
from .types import ConnectionState
from .wire import Lost, Message

BEGIN = "begin"
SNAPSHOT = "snapshot"
LAST = "last"
"""Types of what a channel with a snapshot receives beside events: what it knows is void, some documents (an
array), the last documents."""
PASSING = frozenset({"STORAGE_ERROR", "STORAGE_GONE", "NOT_READY", "QUERY_TIMEOUT", "SHUTTING_DOWN"})
"""Codes of errors that a later try may not have."""
ERROR_SECONDS = 1.0
_NOTHING = msgspec.Raw(b"null")


class QuerySession(Session):
    """The link has one channel, with a query."""

    _id: str | None = None
    """The query's id; "" for a plain subscription, None until the server has replied."""
    _asked_ref: int | None = None
    _in_snapshot = False

    async def _begin(self) -> None:
        ready = None
        with trio.move_on_after(READY_SECONDS):
            ready = await self._wire.receive()
        if ready is None or ready.type != "ready" or ready.seq is None:
            raise Lost("the server did not say that it is ready")
        self._head = ready.seq
        self._catching_up = True

    def _caught_up(self) -> bool:
        return self._id is not None and not self._in_snapshot and super()._caught_up()

    async def _settle(self) -> None:
        """Ask how far the server has come: the past may end with changes that do not match."""
        while True:
            if self._catching_up and self._id is not None and not self._paused:
                await self._wire.send({"action": "ping"})
            await trio.sleep(ASK_SECONDS)

    async def _take(self, message: Message) -> None:
        link = self._link
        if not link.channels:  # the consumer has just left
            return
        channel = link.channels[0]
        if message.ref is not None and message.ref == self._asked_ref:
            await self._take_subscribed(message, channel)
        elif message.type == "reset":
            if self._id is not None and message.query == self._id:  # else it is asked anew already
                self._begin_anew(channel, message.reason, message.seq or 0)
        elif message.type == "pong" or message.type == "progress":
            # Before the reply, and amid a snapshot, its seq says nothing about this query.
            if self._id is not None and not self._in_snapshot:
                link.advance(message.seq or 0)
        elif self._id is None or message.query != self._id or message.seq is None:
            self._take_reply(message)
        elif message.type in EVENTS:
            await link.deliver(received(message))
        elif message.type == SNAPSHOT and self._in_snapshot:
            kind = LAST if message.last else SNAPSHOT
            await channel.buffer.put(Received(kind, message.collection, message.seq, message.documents))
            if message.last:
                self._in_snapshot = False
                channel.start = link.cursor = message.seq
                self._is_live()

    async def _take_subscribed(self, message: Message, channel: Channel) -> None:
        link = self._link
        self._asked_ref = None
        if message.type != "subscribed" or message.seq is None:
            if message.code in PASSING:
                raise Lost(f"{message.code}: {message.message}", retry_after=1.0)
            link.remove(channel)
            status = {"NOT_IN_TOKEN": 403, "RESULT_TOO_LARGE": 413}.get(message.code, 400)
            channel.end(PaperDBError(status, message.code or "BAD_ANSWER", message.message))
            return
        if channel.query_id not in (None, message.query) and channel.start is not None:
            self._begin_anew(channel, "rule", message.seq)  # this connection's token has another one
            channel.query_id = message.query
            return
        self._id = channel.query_id = message.query
        if channel.start is None:
            assert channel.query is not None
            self._in_snapshot = channel.query.snapshot
            if self._in_snapshot:
                await channel.buffer.put(Received(BEGIN, message.collection, message.seq, _NOTHING))
            else:
                channel.start = link.cursor = message.seq
        link.begins()
        if not self._caught_up():
            link.show(ConnectionState.CATCHING_UP)
        channel.started.set()

    def _begin_anew(self, channel: Channel, reason: str, seq: int) -> None:
        """The server cannot go on from where the channel is, or another rule holds."""
        assert channel.query is not None
        self._id = None
        self._in_snapshot = False
        self._catching_up = True
        if channel.query.snapshot:
            channel.start = None
            self._link.cursor = 0
            if reason == "error":
                raise Lost("the server could not follow the query", retry_after=ERROR_SECONDS)
            self._link.show(ConnectionState.CATCHING_UP, f"the server reset the query: {reason}")
        else:
            self._link.reset(channel, reason, seq)
        self.changed.set()

    async def _reconcile(self) -> None:
        while True:
            await self.changed.wait()
            self.changed = trio.Event()
            if self._link.channels and self._id is None and self._asked_ref is None:
                await self._ask(self._link.channels[0])

    async def _ask(self, channel: Channel) -> None:
        query = channel.query
        assert query is not None
        (name,) = channel.collections
        self._asked_ref = next(self._refs)
        action: dict[str, Any] = {"action": "subscribe", "collection": name, "ref": self._asked_ref}
        if query.filter is not None:
            action["filter"] = query.filter
        if query.select is not None:
            action["select"] = query.select
        if channel.start is not None:
            action["since"] = self._link.cursor
        elif query.snapshot:
            action["snapshot"] = True
        await self._wire.send(action)
        if "since" in action:
            await self._wire.send({"action": "ping"})
