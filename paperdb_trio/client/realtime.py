"""`db.realtime`: subscriptions, and tokens for clients that must not hold a key.

Law: decides which link feeds whom; what a link does is the link's.

All subscriptions of a client share one socket, which never waits for a consumer. A subscription whose
consumer falls a whole buffer behind moves to a socket of its own, where it is sent what it missed at the
pace at which it takes it: slow consumers slow nobody but themselves, and memory stays bounded. (The other
choice, not to read the shared socket while one consumer is slow, deadlocks a consumer whose body waits for
another subscription.) A subscription with `since` has its own socket from the start: its past is nobody
else's. One socket covers 100 collections; more of them get a second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Literal, cast

import msgspec
import trio

from paperdb_trio.client import requests
from paperdb_trio.client.buffer import Buffer
from paperdb_trio.client.errors import GapError
from paperdb_trio.client.feed import Feed
from paperdb_trio.client.http import AsyncTransport
from paperdb_trio.client.link import IDLE, Link
from paperdb_trio.client.status import Statuses
from paperdb_trio.client.token import TokenSource
from paperdb_trio.client.types import Event, EventType, Permission, State, Status
from paperdb_trio.client.wire import Address

BUFFER_EVENTS = 1000
BUFFER_BYTES = 4 * 1024 * 1024


class Realtime:
    """One per client, which runs its links in its nursery."""

    def __init__(self, transport: AsyncTransport, address: Address, tokens: TokenSource) -> None:
        self._transport = transport
        self._address = address
        self._tokens = tokens
        self._statuses = Statuses(IDLE)
        self._links: list[Link] = []
        self._nursery: trio.Nursery | None = None

    async def generate_token(
        self,
        collections: Sequence[str],
        permissions: Sequence[Permission] = ("read",),
        expires_in: int = 900,
    ) -> str:
        """A token for a front end that subscribes to `collections`; `expires_in` 30 to 86,400 seconds.

        Raises `PaperDBError`: 403 `PLAN_REQUIRED`, 403 `READ_ONLY_KEY`, 400 for what makes no sense.
        """
        minted = await self._transport.send(requests.mint(collections, permissions, expires_in))
        return minted.token

    def subscribe(
        self,
        *collections: str,
        since: int | None = None,
        on_gap: Literal["raise", "continue"] = "raise",
        max_events: int = BUFFER_EVENTS,
        max_bytes: int = BUFFER_BYTES,
    ) -> Subscription:
        """`async with db.realtime.subscribe("messages") as events: async for event in events: …`

        Entering waits until the server has it: every change committed after that comes, once, in order of
        seq over all its collections. While the server cannot be reached it waits (use `trio.fail_after`).
        `since`: all changes after this seq come first; `event.seq` of the last event that you have dealt
        with is the one to keep.

        If the server no longer has what was missed (a long outage, or a `since` too old), the iterator
        raises `GapError`, because a copy that has silently missed changes is worse than none; with
        `on_gap="continue"` only the status tells, and events go on from the present.

        `max_events`, `max_bytes` (of JSON): what may wait for a consumer before it counts as slow.
        """
        if not collections:
            raise TypeError("subscribe() needs the name of a collection")
        if since is not None and (isinstance(since, bool) or not isinstance(since, int) or since < 0):
            raise ValueError(f"since is the seq of the last change seen, or None; not {since!r}")
        if on_gap not in ("raise", "continue"):
            raise ValueError(f"on_gap is 'raise' or 'continue', not {on_gap!r}")
        names = frozenset(map(requests.check_collection, collections))
        return Subscription(self, Feed(names, since, Buffer(max_events, max_bytes), on_gap == "continue"))

    def status(self) -> Statuses:
        """The states of the shared socket: `.current`, or `async for status in db.realtime.status()`."""
        return self._statuses

    # --- for subscriptions and links -------------------------------------------------------------

    def _add(self, feed: Feed) -> None:
        if feed.start is None:
            for link in self._links:
                if link.shared and link.has_room(feed.collections):
                    link.add(feed)
                    return
        self._start(feed, shared=feed.start is None)

    def move_out(self, feed: Feed) -> None:
        self._start(feed, shared=False)

    def _start(self, feed: Feed, *, shared: bool) -> None:
        if self._nursery is None:
            raise RuntimeError("The client is not open; use it as `async with create_client(…) as db`")
        link = Link(self._address, self._tokens, self, shared=shared)
        self._links.append(link)
        link.add(feed)
        self._nursery.start_soon(self._run, link)

    async def _run(self, link: Link) -> None:
        await link.run()
        self._links.remove(link)  # one that was cancelled or has failed is left by `_end`

    def show(self, link: Link, status: Status) -> None:
        if link is next((other for other in reversed(self._links) if other.shared), None):
            self._statuses._publish(status)

    def _end(self) -> None:
        self._nursery = None
        for link in self._links:
            link.leave()
        self._links.clear()
        self._statuses._end(Status(State.CLOSED, "the client has been closed"))


class Subscription:
    """Events of one or more collections. Enter it once; let one task at a time iterate.

    The iterator raises `PaperDBError` when the subscription has ended for good (`ACCESS_LOST`: key revoked
    or plan lost; 401: the token was refused; …), its subclass `GapError` when changes were missed, and
    `trio.ClosedResourceError` after the `async with` block or the client has been left.
    """

    def __init__(self, realtime: Realtime, feed: Feed) -> None:
        self._realtime = realtime
        self._feed = feed
        self._entered = False

    def __repr__(self) -> str:
        return f"<subscription to {', '.join(sorted(self._feed.collections))}>"

    async def __aenter__(self) -> Subscription:
        if self._entered:
            raise RuntimeError("A subscription can be entered once; call subscribe() again")
        self._entered = True
        feed = self._feed
        self._realtime._add(feed)
        try:
            await feed.started.wait()
            if feed.error is not None and not isinstance(feed.error, GapError):  # that is the iterator's
                raise feed.error
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        feed = self._feed
        if feed.link is not None:
            feed.link.remove(feed)
        feed.leave("the subscription has been left")

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        received = await self._feed.buffer.take()
        return Event(
            cast(EventType, received.type),
            received.collection,
            msgspec.json.decode(received.data),
            received.seq,
        )

    def status(self) -> Statuses:
        """This subscription's states: `.current`, or `async for status in events.status()`.

        It can be watched before it is entered, too: that waits while the server is away.
        """
        return self._feed.statuses
