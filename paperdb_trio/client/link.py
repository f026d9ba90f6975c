"""One socket kept open for as long as anyone wants it, and the subscriptions that it feeds.

Law: a feed gets every change of its collections after its start, once, in order of seq, whatever happens
to the socket. `cursor` is the seq up to which everything that this link is subscribed to has been handed
to its feeds; a feed's own position is the later of its start and the cursor. A feed that is not yet
started gets its start from the server (the head when it was subscribed), never from a guess.

Shared or not: a shared link never waits for a consumer; a feed whose buffer is full leaves it, for a link
of its own. A link with one feed does wait: then its socket is not read, and the server, which feeds a slow
reader from its log, holds the rest.
"""

from __future__ import annotations

import math
from typing import Protocol

import trio

from paperdb_trio.client.backoff import Backoff
from paperdb_trio.client.buffer import Received
from paperdb_trio.client.errors import GapError, PaperDBError
from paperdb_trio.client.feed import Feed
from paperdb_trio.client.session import Again, Session
from paperdb_trio.client.token import Token, TokenSource, is_passing
from paperdb_trio.client.types import State, Status
from paperdb_trio.client.wire import Address, Lost, Stop, TokenRefused, converse, unobtained

GOOD_SECONDS = 10.0
"""What a connection must have lasted for its loss to count as the first one: what accepts and then closes is
left in peace like what refuses."""
IDLE = Status(State.CLOSED, "nothing is subscribed")
MAX_COLLECTIONS = 100
MAX_NAMES = 4096
"""What one token, and so one link, can cover: so many, with so many characters in all."""


class Owner(Protocol):
    """Who makes links."""

    def move_out(self, feed: Feed) -> None:
        """Give `feed`, which has left its link, one of its own."""

    def show(self, link: Link, status: Status) -> None:
        """A shared link has a new status."""


class Link:
    """`run()` it in a nursery; it ends when its last feed leaves, or for good with an error for all. When it
    is cancelled or fails, its feeds learn of that by `leave()`, not before: who waits for events within the
    same nursery should see the cancellation, and no second error beside a Ctrl-C.
    """

    def __init__(self, address: Address, tokens: TokenSource, owner: Owner, *, shared: bool) -> None:
        self._address = address
        self._tokens = tokens
        self._owner = owner
        self.shared = shared
        self.feeds: list[Feed] = []
        self.open = True
        self._scope = trio.CancelScope()
        self.cursor = 0
        self.has_cursor = False
        self._backoff = Backoff()
        self._begun_at = math.inf
        self._status = Status(State.CONNECTING)
        self._session: Session | None = None

    # --- who is fed ------------------------------------------------------------------------------

    @property
    def wanted(self) -> frozenset[str]:
        return frozenset[str]().union(*(feed.collections for feed in self.feeds))

    def has_room(self, collections: frozenset[str]) -> bool:
        together = self.wanted | collections
        return self.open and len(together) <= MAX_COLLECTIONS and sum(map(len, together)) <= MAX_NAMES

    def add(self, feed: Feed) -> None:
        feed.link = self
        self.feeds.append(feed)
        feed.statuses._publish(self._status)
        self._changed()

    def remove(self, feed: Feed) -> None:
        if feed in self.feeds:
            self.feeds.remove(feed)
            feed.link = None
            if self.feeds:
                self._changed()
            else:
                self.open = False
                self._scope.cancel()

    def _changed(self) -> None:
        if self._session is not None:
            self._session.changed.set()

    def _position(self, feed: Feed) -> int:
        return max(feed.start or 0, self.cursor)

    # --- what the session tells ------------------------------------------------------------------

    def show(self, state: State, reason: str = "", retry_in: float | None = None) -> None:
        self._status = Status(state, reason, retry_in, cursor=self.cursor if self.has_cursor else None)
        for feed in self.feeds:
            feed.statuses._publish(self._status)
        if self.shared:
            self._owner.show(self, self._status)

    def note(self, reason: str = "", retry_in: float | None = None) -> None:
        """The connection is as it was; something about it is told, or (no reason) is over."""
        self.show(self._status.state, reason, retry_in)

    def begins(self) -> None:
        """The server is ready: from here on the cursor is one."""
        self._begun_at = trio.current_time()
        self.has_cursor = True

    def is_live(self) -> None:
        self.show(State.LIVE)

    async def deliver(self, event: Received) -> None:
        """Hand an event to whom it concerns. On a shared link this never waits."""
        if event.seq <= self.cursor:
            return
        for feed in tuple(self.feeds):
            if event.collection in feed.collections and feed.start is not None and event.seq > feed.start:
                if not self.shared:
                    await feed.buffer.put(event)
                elif not feed.buffer.offer(event):
                    feed.start = self._position(feed)
                    self.remove(feed)
                    self._owner.move_out(feed)
        self.cursor = event.seq

    def advance(self, seq: int) -> None:
        """The server says that everything up to `seq` has been sent."""
        self.cursor = max(self.cursor, seq)

    def missed(self, oldest: int, head: int) -> None:
        """The log begins at `oldest`: some feed has a gap, and the connection goes on after `head`.

        Raises `Again` if another feed, without a gap, is still to get what lies before `head`.
        """
        for feed in tuple(self.feeds):
            if feed.start is None:
                continue
            feed.start = self._position(feed)
            if oldest - 1 <= feed.start <= head:  # beyond the head: the database was restored from a backup
                continue
            error = GapError(feed.start, oldest)
            feed.statuses._publish(Status(State.GAP, error.message, error=error, cursor=head))
            if feed.goes_on_after_gap:
                feed.start = head
            else:
                self.remove(feed)
                feed.end(error)
        self.cursor = 0
        if any(feed.start is not None and feed.start < head for feed in self.feeds):
            raise Again
        self.cursor = head

    # --- the connections, one after the other ----------------------------------------------------

    async def run(self) -> None:
        """Keep a connection until no feed is left, or the server says that it is of no use."""
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
            last = Status(State.CLOSED, stop.error.message, error=stop.error)
            for feed in tuple(self.feeds):
                self.remove(feed)
                feed.end(stop.error)
        finally:
            self.open = False
            if self.shared:
                self._owner.show(self, last)

    def leave(self) -> None:
        """Tell those who are still fed that the client has been closed."""
        for feed in tuple(self.feeds):
            self.remove(feed)
            feed.leave("the client has been closed")

    async def _pause(self, reason: str, at_least: float = 0.0) -> None:
        if trio.current_time() >= self._begun_at + GOOD_SECONDS:
            self._backoff.reset()
        wait = self._backoff.next(at_least)
        self.show(State.OFFLINE, reason, retry_in=wait)
        await trio.sleep(wait)

    async def _token(self) -> tuple[Token, bool]:
        """A token for all feeds, and whether it is fresh. Ends those that `get_token`'s does not cover."""
        asked = self.wanted
        try:
            token, fresh = await self._tokens.get(asked)
        except PaperDBError as error:
            raise unobtained(error) from None
        self.refuse_uncovered(token, asked)
        return token, fresh

    def refuse_uncovered(self, token: Token, asked: frozenset[str]) -> None:
        """End the feeds that `token` does not cover though it was to cover all of `asked`."""
        for feed in tuple(self.feeds):
            if feed.collections <= asked and not token.covers(feed.collections):
                names = ", ".join(sorted(feed.collections - (token.collections or frozenset())))
                self.remove(feed)
                feed.end(PaperDBError(403, "NOT_IN_TOKEN", f"The token does not cover: {names}"))

    async def _connect(self) -> None:
        self._begun_at = math.inf
        self.show(State.CONNECTING)
        token, fresh = await self._token()
        session = Session(self, self._tokens, token)
        positions = [self._position(feed) for feed in self.feeds if feed.start is not None]
        if positions:
            self.cursor = min(positions)
            self.has_cursor = True
        query = {"since": "now" if session.from_head else str(self.cursor)}
        if token.collections != frozenset(session.subscribed):  # the names travel once
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
