"""`db.realtime`: subscriptions, and tokens for clients that must not hold a key.

Law: what users call; `links` decides how events arrive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, cast

import msgspec

from . import requests
from .buffer import Buffer
from .channel import Channel, Query
from .errors import GapError
from .http import AsyncTransport
from .links import Links
from .status import Statuses
from .types import Event, EventType, Permission, Rules

BUFFER_EVENTS = 1000
BUFFER_BYTES = 4 * 1024 * 1024


class Realtime:
    """One per client."""

    def __init__(self, transport: AsyncTransport, links: Links) -> None:
        self._transport = transport
        self._links = links

    async def generate_token(
        self,
        collections: Sequence[str] | Rules,
        permissions: Sequence[Permission] = ("read",),
        expires_in: int = 900,
        *,
        subject: str | None = None,
    ) -> str:
        """A token for a front end. `collections`: their names, or a dict with a rule for each, like
        `{"orders": {"filter": {"userId": "alice"}, "select": ["status"]}}`. `expires_in` is 30 to 86,400
        seconds. `subject`: whose token it is, for `revoke`.

        Raises `PaperDBError`: 403 `PLAN_REQUIRED`, 403 `READ_ONLY_KEY`, 400 for invalid arguments.
        """
        minted = await self._transport.send(requests.mint(collections, permissions, expires_in, subject))
        return minted.token

    async def revoke(self, subject: str | None = None, *, jti: str | None = None) -> None:
        """End all tokens of a subject that were minted until now, or one token, before their time. Needs a
        secret key. Raises `PaperDBError`."""
        await self._transport.send(requests.revoke(subject, jti))

    def subscribe(
        self,
        *collections: str,
        filter: Mapping[str, Any] | None = None,
        select: str | Sequence[str] | None = None,
        since: int | None = None,
        on_gap: Literal["raise", "continue"] = "raise",
        max_events: int = BUFFER_EVENTS,
        max_bytes: int = BUFFER_BYTES,
    ) -> Subscription:
        """`async with db.realtime.subscribe("messages") as events: async for event in events: …`

        Entering waits until the server has the subscription. Every change committed after that comes, once, in
        order of seq over all its collections. While the server cannot be reached, entering waits (use
        `trio.fail_after`). `since`: all changes after this seq come first. Keep the `event.seq` of the last
        event that you have dealt with.

        `filter`, `select`: only what enters, changes in, or leaves this view of one collection, as `insert`,
        `update` and `delete`. Such a subscription has its own socket.

        If the server no longer has what was missed (a long outage, or a `since` too old), the iterator raises
        `GapError`, because a copy that has silently missed changes is worse than none. With
        `on_gap="continue"` only the status tells, and events go on from the present.

        `max_events`, `max_bytes` (of JSON): what may wait for a consumer before it counts as slow.
        """
        if not collections:
            raise TypeError("subscribe() needs the name of at least one collection")
        if since is not None and (isinstance(since, bool) or not isinstance(since, int) or since < 0):
            raise ValueError(f"since is {since!r}; expected the seq of the last change seen, or None")
        if on_gap not in ("raise", "continue"):
            raise ValueError(f"on_gap is {on_gap!r}; expected 'raise' or 'continue'")
        names = frozenset(map(requests.check_collection, collections))
        query = None
        if filter is not None or select is not None:
            if len(names) > 1:
                raise TypeError("subscribe() with filter or select takes one collection")
            query = Query(filter, requests.paths(select))
        channel = Channel(names, since, Buffer(max_events, max_bytes), on_gap == "continue", query)
        return Subscription(self._links, channel)

    def status(self) -> Statuses:
        """The states of the shared socket: `.current`, or `async for status in db.realtime.status()`."""
        return self._links.status.statuses


class Subscription:
    """Events of one or more collections. Enter it once, and iterate it in one task at a time.

    The iterator raises `PaperDBError` when the subscription has ended for good (`ACCESS_LOST`: key revoked
    or plan lost; 401: the token was refused; …), its subclass `GapError` when changes were missed, and
    `trio.ClosedResourceError` after the `async with` block or the client has been left.
    """

    def __init__(self, links: Links, channel: Channel) -> None:
        self._links = links
        self._channel = channel
        self._entered = False

    def __repr__(self) -> str:
        return f"<subscription to {', '.join(sorted(self._channel.collections))}>"

    async def __aenter__(self) -> Subscription:
        if self._entered:
            raise RuntimeError("A subscription can be entered only once; call subscribe() again")
        self._entered = True
        channel = self._channel
        self._links.add(channel)
        try:
            await channel.started.wait()
            if channel.error is not None and not isinstance(
                channel.error, GapError
            ):  # the iterator raises that
                raise channel.error
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        channel = self._channel
        if channel.link is not None:
            channel.link.remove(channel)
        channel.leave("the subscription has been left")

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        received = await self._channel.buffer.take()
        return Event(
            cast(EventType, received.type),
            received.collection,
            msgspec.json.decode(received.data),
            received.seq,
            cast(EventType | None, received.cause),
            received.txn,
        )

    def status(self) -> Statuses:
        """This subscription's states: `.current`, or `async for status in events.status()`.

        They can be watched before it is entered, too, because entering waits while the server is away.
        """
        return self._channel.status.statuses
