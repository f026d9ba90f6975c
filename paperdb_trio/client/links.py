"""The links of a client: which of them feeds which subscription.

Law: decides who is fed by whom; what a link does is the link's.

All subscriptions of a client share one socket, which never waits for a consumer. A subscription whose consumer
falls a whole buffer behind moves to a socket of its own. There the server sends what it missed at the pace at
which it reads: a slow consumer slows only itself, and memory stays bounded. (Not reading the shared socket
while one consumer is slow would deadlock a consumer whose body waits for another subscription.) A subscription
with `since` has its own socket from the start, because no other one shares its past; so has a live query, whose
position is its own. One socket covers 100 collections; beyond that there is a second one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from .channel import Channel
from .link import IDLE, Link
from .status import StatusBoard
from .token import TokenSource
from .types import ConnectionState, Status
from .wire import Address


class Links:
    """One per client. `status` is that of the newest shared link; `running` are all links."""

    def __init__(self, address: Address, tokens: TokenSource) -> None:
        self._address = address
        self._tokens = tokens
        self.running: list[Link] = []
        self._told: list[Callable[[], None]] = []
        self._nursery: trio.Nursery | None = None
        self.status = StatusBoard(IDLE)

    def open(self, nursery: trio.Nursery) -> None:
        """Links run in `nursery` from now on."""
        self._nursery = nursery

    def cancel(self) -> None:
        """End every link. No new one can begin."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            self._nursery = None

    def close(self) -> None:
        """Tell the subscriptions of links that were cancelled or have failed that the client is closed."""
        for link in self.running:
            link.leave()
        self.running.clear()
        for tell in tuple(self._told):
            tell()
        self.status.end(Status(ConnectionState.CLOSED, "the client has been closed"))

    def start(self, task: Callable[[], Awaitable[None]], tell: Callable[[], None]) -> None:
        """Run what uses links beside them. `tell` is called when the client has been closed."""
        self._open_nursery().start_soon(task)
        self._told.append(tell)

    def forget(self, tell: Callable[[], None]) -> None:
        if tell in self._told:
            self._told.remove(tell)

    def add(self, channel: Channel) -> None:
        if channel.start is None and channel.query is None:
            for link in self.running:
                if link.shared and link.has_room(channel.collections):
                    link.add(channel)
                    return
        self._start(channel, shared=channel.start is None and channel.query is None)

    def move_out(self, channel: Channel) -> None:
        self._start(channel, shared=False)

    def show(self, link: Link, status: Status) -> None:
        if link is next((other for other in reversed(self.running) if other.shared), None):
            self.status.publish(status)

    def _start(self, channel: Channel, *, shared: bool) -> None:
        nursery = self._open_nursery()
        link = Link(self._address, self._tokens, self, shared=shared)
        self.running.append(link)
        link.add(channel)
        nursery.start_soon(self._run, link)

    def _open_nursery(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("The client is not open; use it as `async with create_client(…) as db`")
        return self._nursery

    async def _run(self, link: Link) -> None:
        await link.run()
        self.running.remove(link)  # `close` does it for one that was cancelled or has failed
