"""One socket, kept open for as long as anyone wants it, and the channels that it fills.

Law: a channel gets every change of its collections after its start, once, in order of seq, whatever happens
to the socket. `cursor` is the seq up to which the channels have been given everything that this link is
subscribed to. A channel's own position is the later of its start and the cursor. A channel without a start gets
one from the server (the head when it was subscribed), never from a guess.

A shared link never waits for a consumer: a channel whose buffer is full leaves it, for a link of its own. A
link that is not shared does wait. Its socket is not read meanwhile, and the server, which feeds a slow reader
from its log, holds the rest.
"""

from __future__ import annotations

import math
from typing import Protocol

import trio

from .backoff import Backoff
from .buffer import Received
from .channel import Channel
from .errors import GapError, PaperDBError
from .query_session import QuerySession
from .session import Again, Session
from .token import Token, TokenSource, is_passing
from .types import ConnectionState, Status
from .wire import Address, Lost, Stop, TokenRefused, converse, unobtained

GOOD_SECONDS = 10.0
"""A connection that lasted this long resets the backoff. A server that accepts and then closes is left in peace
like one that refuses."""
IDLE = Status(ConnectionState.CLOSED, "nothing is subscribed")
MAX_COLLECTIONS = 100
MAX_NAMES = 4096
"""The most collections that one token, and so one link, can cover, and the most characters in their names."""


class Owner(Protocol):
    """What makes links."""

    def move_out(self, channel: Channel) -> None:
        """Give `channel`, which has left its link, one of its own."""

    def show(self, link: Link, status: Status) -> None:
        """A shared link has a new status."""


class Link:
    """`run()` it in a nursery. It ends when its last channel leaves, or for good with an error for all.

    When it is cancelled or fails, its channels learn of that by `leave()`, not before: a task that waits for
    events in the same nursery should see the cancellation, and no second error beside a Ctrl-C.
    """

    def __init__(self, address: Address, tokens: TokenSource, owner: Owner, *, shared: bool) -> None:
        self._address = address
        self._tokens = tokens
        self._owner = owner
        self.shared = shared
        self.channels: list[Channel] = []
        self.open = True
        self._scope = trio.CancelScope()
        self.cursor = 0
        self.has_cursor = False
        self._backoff = Backoff()
        self._begun_at = math.inf
        self._status = Status(ConnectionState.CONNECTING)
        self._session: Session | None = None

    # --- its channels ----------------------------------------------------------------------------

    @property
    def wanted(self) -> frozenset[str]:
        return frozenset[str]().union(*(channel.collections for channel in self.channels))

    def has_room(self, collections: frozenset[str]) -> bool:
        together = self.wanted | collections
        return self.open and len(together) <= MAX_COLLECTIONS and sum(map(len, together)) <= MAX_NAMES

    def add(self, channel: Channel) -> None:
        channel.link = self
        self.channels.append(channel)
        channel.status.publish(self._status)
        self._changed()

    def remove(self, channel: Channel) -> None:
        if channel in self.channels:
            self.channels.remove(channel)
            channel.link = None
            if self.channels:
                self._changed()
            else:
                self.open = False
                self._scope.cancel()

    def _changed(self) -> None:
        if self._session is not None:
            self._session.changed.set()

    def _position(self, channel: Channel) -> int:
        return max(channel.start or 0, self.cursor)

    # --- what the session says -------------------------------------------------------------------

    def show(self, state: ConnectionState, reason: str = "", retry_in: float | None = None) -> None:
        self._status = Status(state, reason, retry_in, cursor=self.cursor if self.has_cursor else None)
        for channel in self.channels:
            channel.status.publish(self._status)
        if self.shared:
            self._owner.show(self, self._status)

    def note(self, reason: str = "", retry_in: float | None = None) -> None:
        """The connection is unchanged; `reason` says something about it, or (no reason) that this is over."""
        self.show(self._status.state, reason, retry_in)

    def begins(self) -> None:
        """The server is ready. The cursor is valid from here on."""
        self._begun_at = trio.current_time()
        self.has_cursor = True

    def is_live(self) -> None:
        self.show(ConnectionState.LIVE)

    async def deliver(self, event: Received) -> None:
        """Put an event into the channels that want it. On a shared link this never waits."""
        if event.seq <= self.cursor:
            return
        for channel in tuple(self.channels):
            if not channel.wants(event):
                continue
            if not self.shared:
                await channel.buffer.put(event)
            elif not channel.buffer.offer(event):
                channel.start = self._position(channel)
                self.remove(channel)
                self._owner.move_out(channel)
        self.cursor = event.seq

    def advance(self, seq: int) -> None:
        """The server says that everything up to `seq` has been sent."""
        self.cursor = max(self.cursor, seq)

    def missed(self, oldest: int, head: int) -> None:
        """The log begins at `oldest`: some channel has a gap, and the connection goes on after `head`.

        Raises `Again` if another channel, without a gap, still needs what lies before `head`.
        """
        for channel in tuple(self.channels):
            if channel.start is None:
                continue
            channel.start = self._position(channel)
            if oldest - 1 <= channel.start <= head:  # beyond the head: the database was restored from a backup
                continue
            error = GapError(channel.start, oldest)
            channel.status.publish(Status(ConnectionState.GAP, error.message, error=error, cursor=head))
            if channel.goes_on_after_gap:
                channel.start = head
            else:
                self.remove(channel)
                channel.end(error)
        self.cursor = 0
        if any(channel.start is not None and channel.start < head for channel in self.channels):
            raise Again
        self.cursor = head

    def reset(self, channel: Channel, reason: str, seq: int) -> None:
        """The server goes on after `seq` with what is not what `channel` had before."""
        error = GapError(self._position(channel), seq + 1, reason)
        channel.status.publish(Status(ConnectionState.GAP, error.message, error=error, cursor=seq))
        if channel.goes_on_after_gap:
            channel.start = seq
            if not self.shared:
                self.cursor = seq
        else:
            self.remove(channel)
            channel.end(error)

    # --- its connections, one after another ------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection until no channel is left, or the server refuses for good."""
        last = IDLE
        try:
            with self._scope:
                while True:
                    try:
                        await self._connect()
                    except Again:
                        continue
                    except Lost as lost:
                        await self._pause(str(lost), lost.retry_after)
                    except TokenRefused as refused:
                        await self._pause(str(refused))
        except Stop as stop:
            last = Status(ConnectionState.CLOSED, stop.error.message, error=stop.error)
            for channel in tuple(self.channels):
                self.remove(channel)
                channel.end(stop.error)
        finally:
            self.open = False
            if self.shared:
                self._owner.show(self, last)

    def leave(self) -> None:
        """Tell the channels that are left that the client has been closed."""
        for channel in tuple(self.channels):
            self.remove(channel)
            channel.leave("the client has been closed")

    async def _pause(self, reason: str, at_least: float = 0.0) -> None:
        if trio.current_time() >= self._begun_at + GOOD_SECONDS:
            self._backoff.reset()
        wait = self._backoff.next(at_least)
        self.show(ConnectionState.OFFLINE, reason, retry_in=wait)
        await trio.sleep(wait)

    async def _token(self) -> tuple[Token, bool]:
        """A token for all channels, and whether it is fresh. Ends the channels that it does not cover."""
        asked = self.wanted
        try:
            token, fresh = await self._tokens.get(asked)
        except PaperDBError as error:
            raise unobtained(error) from None
        self.refuse_uncovered(token, asked)
        return token, fresh

    def refuse_uncovered(self, token: Token, asked: frozenset[str]) -> None:
        """End the channels that `token` does not cover, although it was asked for all of `asked`."""
        for channel in tuple(self.channels):
            if channel.collections <= asked and not token.covers(channel.collections):
                names = ", ".join(sorted(channel.collections - (token.collections or frozenset())))
                self.remove(channel)
                channel.end(PaperDBError(403, "NOT_IN_TOKEN", f"The token does not cover: {names}"))

    async def _connect(self) -> None:
        self._begun_at = math.inf
        self.show(ConnectionState.CONNECTING)
        token, fresh = await self._token()
        follows = [channel.query for channel in self.channels if channel.query is not None]
        session = (QuerySession if follows else Session)(self, self._tokens, token)
        positions = [self._position(channel) for channel in self.channels if channel.start is not None]
        if positions:
            self.cursor = min(positions)
            self.has_cursor = True
        query = {"since": "now" if session.from_head else str(self.cursor)}
        if follows:  # the session asks for it
            query = {"since": "now", "collections": ""}
        elif token.collections != frozenset(session.subscribed):  # the names travel once
            query["collections"] = ",".join(sorted(session.subscribed))
        self._session = session
        try:
            await converse(self._address, token.text, query, session.run)
        except TokenRefused as refused:
            self._tokens.forget(token)
            error = refused.error
            if error is None:  # it has expired in use
                raise
            if not fresh:
                raise Again from None
            raise (refused if is_passing(error.code, error.message) else Stop(error)) from None
        finally:
            self._session = None
